"""The auxiliary losses that a layer computes for itself, and how their gradients come in without their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, bad_type
from softgate.routing.balance_losses import importance_loss, load_balancing_loss, router_z_loss, sequence_balance_loss
from softgate.routing.gates import GateOutput

#: The default coefficients.
AUXILIARY = {"load_balance": 0.01, "z": 1e-3}


def _importance(routed: GateOutput, indices: Tensor, counted: Tensor, shape: torch.Size) -> Tensor:
    probs = torch.where(counted[:, None], routed.probs, 0.0)
    return importance_loss(probs) if probs.shape[-1] > 1 else probs.sum() * 0.0


def _sequence(routed: GateOutput, indices: Tensor, counted: Tensor, shape: torch.Size) -> Tensor:
    """The last but one dimension of x is the sequence; without one every token is its own."""
    length = shape[-1] if shape else 1
    cut = (tensor.view(-1, length, *tensor.shape[1:]) for tensor in (routed.probs, indices, counted))
    return sequence_balance_loss(*cut)


_TERMS: dict[str, Callable[[GateOutput, Tensor, Tensor, torch.Size], Tensor]] = {
    "load_balance": lambda routed, indices, counted, _: load_balancing_loss(routed.probs, indices, counted),
    "z": lambda routed, indices, counted, _: router_z_loss(routed.logits, counted),
    "importance": _importance,
    "sequence": _sequence,
}


def check_auxiliary(aux: Any) -> dict[str, float]:
    """A copy of the coefficients, after checking names and values."""
    if aux is None:
        return {}
    if not isinstance(aux, Mapping):
        bad_type("aux", aux, "a mapping of loss names to coefficients, or None")
    for name, value in aux.items():
        if name not in _TERMS:
            raise ArgumentValueError(f"aux must name losses among {', '.join(map(repr, _TERMS))}, got {name!r}")
        check_number(f"aux[{name!r}]", value, low=0.0, high_open=True)
    return dict(aux)


def auxiliary_terms(
    aux: Mapping[str, float], routed: GateOutput, indices: Tensor, counted: Tensor, shape: torch.Size
) -> dict[str, Tensor]:
    """The weighted losses of one forward pass; ``counted`` (T,) says which tokens count, ``shape`` how x had them."""
    return {name: weight * _TERMS[name](routed, indices, counted, shape) for name, weight in aux.items()}


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.ones((), dtype=ctx.dtype, device=grads[0].device)


def attach(y: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
    """``y`` itself; its backward pass also gives the sum of ``terms`` the gradient 1."""
    return _Attach.apply(y, torch.stack(list(terms.values())).sum())  # type: ignore[no-untyped-call]
