"""Checks of what an op leaves behind: its inputs, global state, memory it never wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from softgate.testing.agreement import terms_of
from softgate.testing.budgets import close
from softgate.testing.inputs import Maker, families_for
from softgate.testing.report import Check, fail
from softgate.testing.subject import Call, Subject, tensors_of

__all__ = ["hygiene_checks", "poisoned_memory"]

#: Families with the most different code paths; every one of them exists for some signature family.
_TRIED = (
    "primes",
    "long_rows",
    "non_contiguous",
    "class_indices",
    "images",
    "square",
    "causal",
    "bool_mask",
    "samples",
)


def hygiene_checks(subject: Subject) -> Iterator[Check]:
    """Inputs untouched, nothing aliased, no global state changed, no memory read that was not written."""
    named: list[tuple[str, Callable[[Subject, Call], None]]] = [
        ("inputs_untouched", _check_inputs_untouched),
        ("no_alias", _check_no_alias),
        ("deterministic", _check_deterministic),
        ("no_uninitialised_memory", _check_no_uninitialised_memory),
        ("global_state", _check_global_state),
        ("no_needless_graph", _check_no_needless_graph),
        ("inference_mode", _check_inference_mode),
        ("threads", _check_threads),
        ("autocast", _check_autocast),
    ]
    if subject.record.name.endswith("_"):  # torch's name for an op that writes to its input
        named = [entry for entry in named if entry[0] not in ("inputs_untouched", "no_alias", "deterministic")]
    for name, check in named:
        yield Check(name, subject.variant, partial(_on_every_call, subject, check))


def _on_every_call(subject: Subject, check: Callable[[Subject, Call], None]) -> None:
    for family, maker in _tried(subject):
        for dtype in (torch.float32, torch.bfloat16):
            for call in maker(subject, dtype, subject.generator(family)):
                torch.manual_seed(0)
                check(subject, call)


def _tried(subject: Subject) -> Iterator[tuple[str, Maker]]:
    for family, maker in families_for(subject).items():
        if family in _TRIED:
            yield family, maker


def _check_inputs_untouched(subject: Subject, call: Call) -> None:
    before = [t.clone() for t in tensors_of([call.args, dict(call.kwargs)])]
    subject.run(call)
    _with_backward(subject, call)
    for old, new in zip(before, tensors_of([call.args, dict(call.kwargs)]), strict=True):
        if not torch.equal(old.nan_to_num(), new.nan_to_num()):
            fail("the call changed its input", before=old, after=new)


def _with_backward(subject: Subject, call: Call) -> list[Tensor]:
    args = list(call.args)
    for index in call.differentiable:
        args[index] = args[index].detach().requires_grad_()
    torch.manual_seed(0)
    outputs = [t for t in tensors_of(subject.run(Call(tuple(args), call.kwargs))) if t.requires_grad]
    if not outputs:
        return []
    ones = [torch.ones_like(t) for t in outputs]
    found = torch.autograd.grad(outputs, [args[i] for i in call.differentiable], ones, allow_unused=True)
    return [g for g in found if g is not None]


def _check_no_alias(subject: Subject, call: Call) -> None:
    owned = {t.untyped_storage().data_ptr() for t in tensors_of([call.args, dict(call.kwargs)]) if t.numel()}
    for output in tensors_of(subject.run(call)):
        if output.numel() and output.untyped_storage().data_ptr() in owned:
            fail("an output shares memory with an input", inputs=call.args)


def _same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal entry by entry; NaN equals NaN, and the sign of zero counts."""
    return len(a) == len(b) and all(
        x.shape == y.shape
        and x.dtype == y.dtype
        and torch.equal(x.isnan(), y.isnan())
        and torch.equal(x.nan_to_num(), y.nan_to_num())
        and torch.equal(x.nan_to_num().signbit(), y.nan_to_num().signbit())
        for x, y in zip(a, b, strict=True)
    )


def _everything(subject: Subject, call: Call) -> list[Tensor]:
    torch.manual_seed(0)
    return [t.detach() for t in tensors_of(subject.run(call))] + _with_backward(subject, call)


def _check_deterministic(subject: Subject, call: Call) -> None:
    first = _everything(subject, call)
    for _ in range(3):
        if not _same_bits(first, _everything(subject, call)):
            fail("the same call gives other bits the second time", inputs=call.args)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill every fresh uninitialised buffer of torch and numpy with NaN (integers: the largest value)."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    empty, empty_like = np.empty, np.empty_like

    def poisoned(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "f":
            array.fill(np.nan)
        elif array.dtype.kind in "iu":
            array.fill(np.iinfo(array.dtype).max)
        return array

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    setattr(np, "empty", lambda *a, **k: poisoned(empty(*a, **k)))  # noqa: B010 (numpy's stubs declare it final)
    setattr(np, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))  # noqa: B010
    try:
        yield
    finally:
        setattr(np, "empty", empty)  # noqa: B010
        setattr(np, "empty_like", empty_like)  # noqa: B010
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _check_no_uninitialised_memory(subject: Subject, call: Call) -> None:
    clean = _everything(subject, call)
    with poisoned_memory():
        poisoned = _everything(subject, call)
    if not _same_bits(clean, poisoned):
        fail("the result depends on memory that was never written", clean=clean, poisoned=poisoned, inputs=call.args)


def _state() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "flush denormal": float(torch.tensor([1e-40]).mul(1.0)) == 0.0,
        "numpy error state": tuple(np.geterr().items()),
        "matmul precision": torch.get_float32_matmul_precision(),
    }


def _check_global_state(subject: Subject, call: Call) -> None:
    before = _state()
    _everything(subject, call)
    for name, value in _state().items():
        if value != before[name]:
            fail(f"the call changed the {name} from {before[name]} to {value}")


def _check_no_needless_graph(subject: Subject, call: Call) -> None:
    if any(t.requires_grad for t in tensors_of(subject.run(call))):
        fail("an output requires grad although no input does")
    args = list(call.args)
    for index in call.differentiable:
        args[index] = args[index].detach().requires_grad_()
    with torch.no_grad():
        if any(t.requires_grad for t in tensors_of(subject.run(Call(tuple(args), call.kwargs)))):
            fail("an output requires grad under torch.no_grad()")


def _check_inference_mode(subject: Subject, call: Call) -> None:
    plain = tensors_of(subject.run(call))
    torch.manual_seed(0)
    with torch.inference_mode():
        inside = tensors_of(subject.run(call))
    if not _same_bits([t.detach() for t in plain], inside):
        fail("the result differs under torch.inference_mode()", inputs=call.args)


def _check_threads(subject: Subject, call: Call) -> None:
    """Four Python threads at once give the result of one (a shared scratch buffer would not)."""
    if sum(t.numel() for t in tensors_of(call.args)) > 10_000:
        return
    expected = [t.detach() for t in tensors_of(subject.run(call))]
    if torch.initial_seed() and _uses_randomness(subject, call):
        return
    results: list[list[Tensor]] = []

    def work() -> None:
        for _ in range(5):
            results.append([t.detach() for t in tensors_of(subject.run(call))])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(results) != 20 or not all(_same_bits(expected, result) for result in results):
        fail("four threads at once give another result than one", inputs=call.args)


def _uses_randomness(subject: Subject, call: Call) -> bool:
    before = torch.get_rng_state()
    subject.run(call)
    return not torch.equal(before, torch.get_rng_state())


def _check_autocast(subject: Subject, call: Call) -> None:
    plain = tensors_of(subject.run(call))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tensors_of(subject.run(call))
    for a, b in zip(cast, plain, strict=True):
        if not a.is_floating_point():
            continue
        low = torch.bfloat16
        if not close(a.to(low), b.to(low), terms=terms_of(subject, call)):
            fail("the result under autocast is not the ordinary one to bfloat16", autocast=a, plain=b, inputs=call.args)
