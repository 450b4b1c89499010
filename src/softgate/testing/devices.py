"""Checks that an op gives on a GPU what it gives on the CPU. There are none where torch sees no GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate.testing.agreement import check_gradients_within_budget, gradients, scale_of, terms_of
from softgate.testing.budgets import check_within_budget
from softgate.testing.inputs import Maker, families_for
from softgate.testing.report import Check, fail
from softgate.testing.subject import Call, Subject, tensors_of

__all__ = ["device_checks", "moved"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Where gradients are compared too, as on the CPU: many overflow in float16, which training scales them for.
GRADIENT_DTYPES = (torch.float32, torch.bfloat16)


def device_checks(subject: Subject) -> Iterator[Check]:
    """``device[cuda-dtype-family]``: results and gradients on the GPU, within the budgets that hold on the CPU."""
    if not torch.cuda.is_available():
        return
    for family, maker in families_for(subject).items():
        for dtype in DTYPES:
            name = f"device[cuda-{str(dtype).removeprefix('torch.')}-{family}]"
            yield Check(name, subject.variant, partial(_check, subject, maker, dtype, family), quick=True)


def _check(subject: Subject, maker: Maker, dtype: torch.dtype, family: str) -> None:
    elsewhere = Subject(subject.record, subject.variant)
    elsewhere.fixed = moved(elsewhere.fixed, torch.device("cuda"))
    for call in maker(subject, dtype, subject.generator(family)):
        there = dataclasses.replace(
            call, args=moved(call.args, torch.device("cuda")), kwargs=moved(dict(call.kwargs), torch.device("cuda"))
        )
        _compare(subject, elsewhere, call, there)
        if dtype in GRADIENT_DTYPES:
            _compare_gradients(subject, elsewhere, call, there)


def _compare_gradients(subject: Subject, elsewhere: Subject, call: Call, there: Call) -> None:
    truth = gradients(subject.truth, call.to(torch.float64))
    if not truth:  # nothing here is differentiable
        return
    found, reference = ([g.cpu() for g in gradients(run, there)] for run in (elsewhere.run, elsewhere.run_reference))
    if len(found) != len(truth):
        fail(f"{len(found)} gradients on the GPU, the reference gives {len(truth)}")
    check_gradients_within_budget(subject, call, found, reference, truth)


def _compare(subject: Subject, elsewhere: Subject, call: Call, there: Call) -> None:
    # The reference computes on the GPU too: what its sums round is not what those of a CPU do.
    found, truth = tensors_of(elsewhere.run(there)), subject.truth(call)
    reference = [t.cpu() for t in tensors_of(elsewhere.run_reference(there))]
    if len(found) != len(truth):
        fail(f"{len(found)} tensors on the GPU, the reference gives {len(truth)}")
    for index, (a, r, t) in enumerate(zip(found, reference, truth, strict=True)):
        if a.device.type != "cuda":
            fail(f"result {index} of inputs on the GPU is on {a.device}")
        check_within_budget(
            a.cpu(), r, t, terms=terms_of(subject, call), scale=scale_of(subject), what=f"result {index}"
        )


def moved(value: Any, where: Any) -> Any:
    """``value`` with all tensors inside on the device ``where``, or wrapped by the fake mode ``where``."""
    if isinstance(value, Tensor):
        return value.to(where) if isinstance(where, torch.device) else where.from_tensor(value)
    if isinstance(value, tuple | list):
        return type(value)(moved(item, where) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, where) for key, item in value.items()}
    return value
