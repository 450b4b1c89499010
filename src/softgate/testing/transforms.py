"""Checks of derivatives, ``torch.func`` transforms and the compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate.testing.agreement import check_gradients_within_budget, gradients, terms_of
from softgate.testing.budgets import check_within_budget, close
from softgate.testing.devices import moved
from softgate.testing.inputs import small_call
from softgate.testing.report import Check, ConformanceError, fail
from softgate.testing.subject import Call, Subject, tensors_of

__all__ = ["transform_checks"]


def transform_checks(subject: Subject) -> Iterator[Check]:
    """Transforms of what can stand inside a network: the op families, and custom ops that are differentiable."""
    differentiable = _is_differentiable(subject)
    if subject.record.family == "custom" and not differentiable:
        return
    named: list[tuple[str, Callable[[Subject], None], bool]] = [
        ("compile[fullgraph]", _check_compile, True),
        ("compile[dynamic_shapes]", _check_compile_dynamic, False),
        ("compile[backward]", _check_compile_backward, False),
        ("export", _check_export, False),
        ("meta_shape", _check_meta, True),
        ("fake_tensor", _check_fake, True),
        ("vmap", _check_vmap, True),
    ]
    if differentiable:
        named += [
            ("gradcheck", _check_gradcheck, True),
            ("gradgradcheck", _check_gradgradcheck, False),
            ("jvp", _check_jvp, True),
            ("jacrev_equals_jacfwd", _check_jacobians, True),
            ("hessian", _check_hessian, False),
            ("vmap_of_grad", _check_vmap_of_grad, True),
            ("double_backward", _check_double_backward, True),
        ]
    if subject.record.shapes == "data":
        named = [entry for entry in named if entry[1] not in _OF_STATIC_SHAPES]
    if subject.record.gradient == "surrogate":
        named = [entry for entry in named if entry[1] not in _BY_FINITE_DIFFERENCES]
    for name, check, quick in named:
        yield Check(name, subject.variant, partial(_quietly, check, subject), quick)


def _quietly(check: Callable[[Subject], None], subject: Subject) -> None:
    """Hide two warnings of torch's own: vmap falling back to a loop, and ``torch.jit.script`` inside forward AD."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=DeprecationWarning)
        torch._dynamo.reset()
        check(subject)


def _is_differentiable(subject: Subject) -> bool:
    call = small_call(subject, torch.float64, "differentiable")
    if not call.differentiable:
        return False
    try:
        return bool(gradients(subject.run_reference, call))
    except Exception:  # the gradient checks will say what is wrong
        return True


def _function_of(subject: Subject, call: Call, run: Callable[[Call], Any] | None = None) -> Any:
    """The op as a function of its differentiable tensors, giving a tuple of floating-point tensors."""
    run = run or subject.run

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        args = list(call.args)
        for index, value in zip(call.differentiable, values, strict=True):
            args[index] = value
        found = tensors_of(run(Call(tuple(args), call.kwargs)))
        return tuple(t for t in found if t.is_floating_point())

    return function


def _values(call: Call) -> tuple[Tensor, ...]:
    return tuple(call.args[index] for index in call.differentiable)


def _check_gradcheck(subject: Subject) -> None:
    call = small_call(subject, torch.float64, "gradcheck")
    inputs = tuple(v.clone().requires_grad_() for v in _values(call))
    with _as_conformance_error("gradcheck"):
        torch.autograd.gradcheck(
            _function_of(subject, call), inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=False
        )


def _check_gradgradcheck(subject: Subject) -> None:
    call = small_call(subject, torch.float64, "gradgradcheck")
    inputs = tuple(v.clone().requires_grad_() for v in _values(call))
    with _as_conformance_error("gradgradcheck"):
        torch.autograd.gradgradcheck(_function_of(subject, call), inputs, check_fwd_over_rev=True, fast_mode=False)


class _as_conformance_error:
    """Turns gradcheck's RuntimeError into the suite's error."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and not isinstance(error, ConformanceError):
            raise ConformanceError(f"{self.what}: {str(error).strip()}") from error


def _tangents(call: Call) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple((torch.randint(-8, 9, v.shape, generator=generator) / 8).to(v.dtype) for v in _values(call))


def _check_jvp(subject: Subject) -> None:
    """In float32, where kernels run: a kernel without a forward derivative must step aside, not give zeros."""
    for dtype in (torch.float64, torch.float32):
        call = small_call(subject, dtype, "jvp")
        wide = call.to(torch.float64)
        truth_of = _function_of(subject, wide, subject.truth)
        actual = _derivative(_function_of(subject, call), call)
        low = _derivative(_function_of(subject, call, subject.run_reference), call)
        truth = _derivative(truth_of, wide)
        for a, r, t in zip(actual, low, truth, strict=True):
            check_within_budget(a, r, t, terms=terms_of(subject, call), scale="tensor", what="forward derivative")
        if subject.record.gradient == "surrogate":
            continue
        numeric = _central_difference(truth_of, wide)
        for a, n in zip(actual, numeric, strict=True):
            if not bool(((a.double() - n).abs() <= 1e-4 * n.abs().max().clamp_min(1e-3)).all()):
                fail("jvp is not the derivative", actual=a, finite_difference=n)


def _derivative(function: Any, call: Call) -> tuple[Tensor, ...]:
    return tuple(torch.func.jvp(function, _values(call), _tangents(call))[1])


def _central_difference(function: Any, call: Call) -> list[Tensor]:
    step = 1e-6
    values, tangents = _values(call), _tangents(call)
    up = function(*(v + step * t for v, t in zip(values, tangents, strict=True)))
    down = function(*(v - step * t for v, t in zip(values, tangents, strict=True)))
    return [(a - b) / (2 * step) for a, b in zip(up, down, strict=True)]


def _check_jacobians(subject: Subject) -> None:
    for dtype in (torch.float64, torch.float32):
        call = small_call(subject, dtype, "jacobians")
        function = _function_of(subject, call)
        places = tuple(range(len(call.differentiable)))
        reverse = tensors_of(torch.func.jacrev(function, places)(*_values(call)))
        forward = tensors_of(torch.func.jacfwd(function, places)(*_values(call)))
        for r, f in zip(reverse, forward, strict=True):
            if not close(r, f, terms=terms_of(subject, call)):
                fail("jacrev and jacfwd differ", jacrev=r, jacfwd=f, inputs=call.args)


def _total(function: Any) -> Any:
    """Sum of squares of all outputs: a scalar whose derivatives do not vanish for weights that sum to one."""
    return lambda *values: sum((t.square().sum() for t in function(*values)), start=torch.zeros(()))


def _check_hessian(subject: Subject) -> None:
    call = small_call(subject, torch.float64, "hessian")
    function = _total(_function_of(subject, call))
    places = tuple(range(len(call.differentiable)))
    forward_over_reverse = tensors_of(torch.func.hessian(function, places)(*_values(call)))
    twice_reverse = tensors_of(torch.func.jacrev(torch.func.jacrev(function, places), places)(*_values(call)))
    largest = max(float(t.abs().max()) for t in twice_reverse)
    for a, b in zip(forward_over_reverse, twice_reverse, strict=True):
        if not bool(((a - b).abs() <= 1e-9 * max(largest, 1e-3)).all()):
            fail("hessian: forward over reverse and reverse over reverse differ", hessian=a, twice_jacrev=b)


def _check_double_backward(subject: Subject) -> None:
    """In float32, where kernels run: the gradient of a gradient is right, not silently absent."""
    call = small_call(subject, torch.float32, "double_backward")

    def second(run: Any) -> Any:
        first = _total(_function_of(subject, call, run))

        def norm(c: Call) -> Tensor:
            found = torch.autograd.grad(first(*_values(c)), _values(c), create_graph=True, allow_unused=True)
            return sum((g.square().sum() for g in found if g is not None), start=torch.zeros((), dtype=c.args[0].dtype))

        return norm

    actual = gradients(second(subject.run), call)
    low = gradients(second(subject.run_reference), call)
    truth = gradients(second(subject.truth), call.to(torch.float64))
    if len(actual) != len(truth):
        fail("the gradient cannot be differentiated again, the reference's can")
    for a, r, t in zip(actual, low, truth, strict=True):
        check_within_budget(a, r, t, terms=4 * terms_of(subject, call), scale="tensor", what="second gradient")


def _batched(subject: Subject, dtype: torch.dtype) -> tuple[list[Call], tuple[Tensor, ...]]:
    calls = [small_call(subject, dtype, f"batch {i}") for i in range(3)]
    calls = [Call(c.args, calls[0].kwargs, c.differentiable) for c in calls]
    stacked = tuple(torch.stack(column) for column in zip(*(_values(c) for c in calls), strict=True))
    # only the differentiable tensors are batched; everything else is the first call's
    calls = [Call(_replaced(calls[0], _values(c)), calls[0].kwargs, c.differentiable) for c in calls]
    return calls, stacked


def _replaced(call: Call, values: tuple[Tensor, ...]) -> tuple[Any, ...]:
    args = list(call.args)
    for index, value in zip(call.differentiable, values, strict=True):
        args[index] = value
    return tuple(args)


def _check_vmap(subject: Subject) -> None:
    calls, stacked = _batched(subject, torch.float32)
    if not stacked:
        return
    together = torch.func.vmap(_function_of(subject, calls[0]))(*stacked)
    single = [_function_of(subject, c)(*_values(c)) for c in calls]
    _same(subject, calls[0], "vmap", together, single)


def _check_vmap_of_grad(subject: Subject) -> None:
    calls, stacked = _batched(subject, torch.float32)
    places = tuple(range(len(stacked)))
    gradient = torch.func.grad(_total(_function_of(subject, calls[0])), places)
    together = torch.func.vmap(gradient)(*stacked)
    single = [gradient(*_values(c)) for c in calls]
    _same(subject, calls[0], "vmap of grad", together, single)


def _same(subject: Subject, call: Call, what: str, together: Any, single: list[Any]) -> None:
    for place, batch in enumerate(together):
        alone = torch.stack([s[place] for s in single])
        if not close(batch, alone, terms=terms_of(subject, call)):
            fail(f"{what} differs from a loop", together=batch, one_by_one=alone)


class _Op(torch.nn.Module):
    """The op as a module, for ``torch.export``."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Any:
        return self.function(*values)


def _compare_compiled(subject: Subject, call: Call, compiled: Any, what: str) -> None:
    eager = _function_of(subject, call)(*_values(call))
    for c, e in zip(compiled(*_values(call)), eager, strict=True):
        if not close(c, e, terms=terms_of(subject, call)):
            fail(f"{what} differs from eager", compiled=c, eager=e, inputs=call.args)


def _check_compile(subject: Subject) -> None:
    """``fullgraph=True``: the op has no graph break. The backend traces through autograd and does not generate code."""
    call = small_call(subject, torch.float32, "compile")
    compiled = torch.compile(_function_of(subject, call), backend="aot_eager", fullgraph=True, dynamic=False)
    _compare_compiled(subject, call, compiled, "torch.compile")


def _check_compile_dynamic(subject: Subject) -> None:
    """Dynamo traces with symbolic shapes; for the first variant of an op, autograd's tracer does so too.

    That second trace takes most of the time, and the further variants go through it in the checks with static shapes.
    """
    call = small_call(subject, torch.float32, "compile")
    backend = "aot_eager" if subject.variant == next(iter(subject.record.variants)) else "eager"
    compiled = torch.compile(_function_of(subject, call), backend=backend, fullgraph=True, dynamic=True)
    _compare_compiled(subject, call, compiled, "torch.compile with dynamic shapes")


def _check_compile_backward(subject: Subject) -> None:
    call = small_call(subject, torch.float32, "compile")
    if not call.differentiable:
        return
    compiled = torch.compile(_function_of(subject, call), backend="aot_eager", fullgraph=True, dynamic=False)
    # Against the truth, not against eager: where a gradient is ill-conditioned the two may be off to either side.
    actual = gradients(lambda c: compiled(*_values(c)), call)
    reference = gradients(subject.run_reference, call)
    check_gradients_within_budget(subject, call, actual, reference, gradients(subject.truth, call.to(torch.float64)))


def _check_export(subject: Subject) -> None:
    call = small_call(subject, torch.float32, "export")
    if not call.differentiable:
        return
    module = torch.export.export(_Op(_function_of(subject, call)), _values(call)).module()
    _compare_compiled(subject, call, module, "torch.export")


def _check_meta(subject: Subject) -> None:
    call = small_call(subject, torch.float32, "meta")
    meta = Call(moved(call.args, torch.device("meta")), moved(dict(call.kwargs), torch.device("meta")))
    _same_shapes("meta tensors", tensors_of(subject.run(meta)), tensors_of(subject.run(call)))


def _check_fake(subject: Subject) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    call = small_call(subject, torch.float32, "meta")
    with FakeTensorMode() as mode:
        fake = Call(moved(call.args, mode), moved(dict(call.kwargs), mode))
        found = tensors_of(subject.run(fake))
    _same_shapes("fake tensors", found, tensors_of(subject.run(call)))


def _same_shapes(what: str, found: list[Tensor], expected: list[Tensor]) -> None:
    shapes = [(tuple(t.shape), t.dtype) for t in found]
    if shapes != [(tuple(t.shape), t.dtype) for t in expected]:
        fail(f"{what} give {shapes}, real ones {[(tuple(t.shape), t.dtype) for t in expected]}")


#: Checks of what needs results whose shapes do not depend on values.
_OF_STATIC_SHAPES = (
    _check_compile,
    _check_compile_dynamic,
    _check_compile_backward,
    _check_export,
    _check_meta,
    _check_fake,
    _check_vmap,
    _check_vmap_of_grad,
)
#: Checks of gradients that are derivatives.
_BY_FINITE_DIFFERENCES = (_check_gradcheck, _check_gradgradcheck)
