"""Activations of a fitted gate: those that routers know and a few more, and which make a temperature meaningless."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.routing.dense_to_sparse import ACTIVATIONS as ROUTER_ACTIVATIONS
from softgate.routing.dense_to_sparse import gate_activation

__all__: list[str] = []

#: Name of an activation, an elementwise function of a tensor, or None for the identity.
Activation = str | Callable[[Tensor], Tensor] | None

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **ROUTER_ACTIVATIONS,
    "softplus": F.softplus,
    "sin": torch.sin,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
}

#: σ(c u) = c σ(u) for c > 0: multiplying slopes, biases and temperature by c then leaves every gate as it is.
HOMOGENEOUS = ("identity", "relu", "leaky_relu", "abs")


def activation_of(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function that ``activation`` stands for; see :func:`gate_activation`."""
    return gate_activation("activation", activation, ACTIVATIONS)


def is_homogeneous(activation: Activation) -> bool:
    """Whether ``activation(c u) = c activation(u)`` for all c > 0; a callable is tried on a few numbers."""
    if activation is None or isinstance(activation, str):
        activation_of(activation)
        return activation is None or activation in HOMOGENEOUS
    u = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)
    function = activation_of(activation)
    return bool(torch.allclose(function(2.5 * u), 2.5 * function(u), rtol=1e-9, atol=1e-12))
