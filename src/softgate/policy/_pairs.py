"""What the losses of preference pairs share: arguments, log-ratios, and the inputs on which they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError, check_choice
from softgate.policy._candidates import REDUCTIONS

__all__: list[str] = []

Sample = tuple[tuple[Any, ...], dict[str, Any]]
Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]
NAMES = ("chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp")


def pairs(dtype: torch.dtype, generator: torch.Generator, *shape: int) -> tuple[Tensor, ...]:
    """Random log-probabilities of ``shape``; the first two ask for a gradient."""
    drawn = [(4 * torch.randn(shape, dtype=torch.float64, generator=generator) - 20).to(dtype) for _ in NAMES]
    return drawn[0].requires_grad_(), drawn[1].requires_grad_(), *drawn[2:]


def pair_samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Sample]:
    """Samples of the conformance suite."""
    yield pairs(dtype, generator, 5), {}
    yield pairs(dtype, generator, 2, 3), {"reduction": "none"}
    yield pairs(dtype, generator), {}
    yield pairs(dtype, generator, 0), {}


def bad_pairs() -> Iterator[Bad]:
    """Calls that every loss of pairs refuses."""
    p = torch.zeros(3)
    yield (p, torch.zeros(4), p, p), {}, ArgumentValueError, "rejected_logp"
    yield (p, p, torch.zeros(3, 1), p), {}, ArgumentValueError, "ref_chosen_logp"
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        yield (p, p, p, p), {"beta": beta}, ArgumentValueError, "beta"


def bad_smoothing(high: float) -> Callable[[], Iterator[Bad]]:
    """The same, and rates of flipped pairs below 0 and from ``high`` on."""

    def make() -> Iterator[Bad]:
        yield from bad_pairs()
        p = torch.zeros(3)
        for value in (-0.1, high, float("nan")):
            yield (p, p, p, p), {"label_smoothing": value}, ArgumentValueError, "label_smoothing"

    return make


def check_pairs(reduction: Any, *tensors: Any) -> None:
    """Raise unless the four tensors are floating-point, of one shape and on one device."""
    named = dict(zip(NAMES, tensors, strict=True))
    for name, tensor in named.items():
        check_float_tensor(name, tensor)
        if tensor.shape != tensors[0].shape:
            raise ArgumentValueError(
                f"{name} must have the shape of chosen_logp, {tuple(tensors[0].shape)}, got {tuple(tensor.shape)}"
            )
    check_same_device(**named)
    check_choice("reduction", reduction, REDUCTIONS)


def check_beta(beta: Any) -> float:
    """The number ``beta``, positive and finite."""
    return check_number("beta", beta, low=0.0, low_open=True, high_open=True)


def log_ratios(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Log-ratios of policy and reference of both answers, in float32 or wider; no gradient to the reference."""
    dtype = compute_dtype(torch.promote_types(chosen.dtype, ref_chosen.dtype))
    return (
        chosen.to(dtype) - ref_chosen.detach().to(dtype),
        rejected.to(dtype) - ref_rejected.detach().to(dtype),
    )


def margin(*logps: Tensor) -> Tensor:
    """Log-ratio of the preferred answer minus that of the rejected one."""
    chosen, rejected = log_ratios(*logps)
    return chosen - rejected
