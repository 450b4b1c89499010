"""Checks that an op agrees with its reference: results and gradients, within budgets derived from float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate.testing.budgets import Scale, check_within_budget
from softgate.testing.inputs import Maker, families_for
from softgate.testing.report import Check, ConformanceError, describe
from softgate.testing.subject import Call, Subject, tensors_of

__all__ = ["agreement_checks", "check_gradients_within_budget", "gradients", "scale_of", "terms_of"]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def agreement_checks(subject: Subject) -> Iterator[Check]:
    """``reference[dtype-family]`` and ``gradient[dtype-family]`` for every dtype and family of inputs."""
    for family, maker in families_for(subject).items():
        for dtype in DTYPES:
            detail = f"[{str(dtype).removeprefix('torch.')}-{family}]"
            quick = dtype in (torch.float32, torch.bfloat16)
            run = partial(_check_results, subject, maker, dtype, family)
            yield Check(f"reference{detail}", subject.variant, run, quick)
            if dtype in (torch.float32, torch.bfloat16):
                run = partial(_check_gradients, subject, maker, dtype, family)
                yield Check(f"gradient{detail}", subject.variant, run, quick=family != "long_rows")


def terms_of(subject: Subject, call: Call) -> int:
    """How many terms one output entry sums, at most: the length of the reduced dimension."""
    first = call.args[0]
    if not isinstance(first, Tensor):
        return max((t.numel() for t in tensors_of(call.args)), default=1)
    family = subject.record.family
    if family == "scalar_map":
        return 1
    if family in ("row_map", "row_reduction"):
        dim = call.args[1] if len(call.args) > 1 else -1
        return first.shape[dim] if first.ndim else 1
    if family == "attention":
        return first.shape[-1] * call.args[1].shape[-2]
    return first.numel()


def scale_of(subject: Subject) -> Scale:
    """Weights and gates are held to their own size entry by entry, sums of signed terms to the size of the tensor."""
    if subject.record.error_scale is not None:
        return subject.record.error_scale
    low, high = subject.record.output_range
    signed = low < 0 < high
    return "relative" if subject.record.family in ("row_map", "scalar_map") and not signed else "tensor"


def _check_results(subject: Subject, maker: Maker, dtype: torch.dtype, family: str) -> None:
    for call in maker(subject, dtype, subject.generator(family)):
        with _reproducible(call):
            _compare_results(subject, call)


def _compare_results(subject: Subject, call: Call) -> None:
    torch.manual_seed(0)
    actual = tensors_of(subject.run(call.cloned()))
    torch.manual_seed(0)
    reference = tensors_of(subject.run_reference(call))
    torch.manual_seed(0)
    truth = subject.truth(call)
    if len(actual) != len(truth):
        raise ConformanceError(f"returns {len(actual)} tensors, the reference {len(truth)}")
    for index, (a, r, t) in enumerate(zip(actual, reference, truth, strict=True)):
        what = "result" if len(actual) == 1 else f"result {index}"
        check_within_budget(a, r, t, terms=terms_of(subject, call), scale=scale_of(subject), what=what)


def _check_gradients(subject: Subject, maker: Maker, dtype: torch.dtype, family: str) -> None:
    for call in maker(subject, dtype, subject.generator(family)):
        with _reproducible(call):
            actual = gradients(subject.run, call)
            reference = gradients(subject.run_reference, call)
            truth = gradients(lambda c: subject.truth(c), call.to(torch.float64))
            if not actual and not truth:  # nothing here is differentiable
                continue
            if len(actual) != len(truth):
                raise ConformanceError(f"{len(actual)} gradients, the reference gives {len(truth)}")
            check_gradients_within_budget(subject, call, actual, reference, truth)


def check_gradients_within_budget(
    subject: Subject, call: Call, actual: list[Tensor], reference: list[Tensor], truth: list[Tensor]
) -> None:
    """Hold every gradient to its budget, at the scale of the largest one of the call: small ones may have cancelled."""
    largest = max((float(t[t.isfinite()].abs().max()) for t in truth if bool(t.isfinite().any())), default=0.0)
    for where, a, r, t in zip(call.differentiable, actual, reference, truth, strict=True):
        check_within_budget(
            a,
            r,
            t,
            terms=terms_of(subject, call),
            scale="tensor",
            what=f"gradient of argument {where}",
            size_at_least=largest,
        )


def gradients(run: Any, call: Call) -> list[Tensor]:
    """Gradients of a fixed random combination of the outputs of ``run(call)``; an unused argument gives zeros."""
    args = list(call.args)
    for index in call.differentiable:
        args[index] = args[index].detach().requires_grad_()
    torch.manual_seed(0)
    outputs = [t for t in tensors_of(run(dataclasses.replace(call, args=tuple(args)))) if t.requires_grad]
    if not outputs:
        return []
    generator = torch.Generator().manual_seed(1)
    # drawn in float64 from a fixed seed and kept on a coarse grid, so that every dtype weighs the outputs equally
    seeds = [(torch.randint(-8, 9, t.shape, generator=generator) / 8).to(t.dtype).to(t.device) for t in outputs]
    inputs = [args[index] for index in call.differentiable]
    found = torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


class _reproducible:
    """Adds the arguments of the call to an exception that passes through."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"    inputs: {describe(self.call.args)}, {describe(dict(self.call.kwargs))}")
