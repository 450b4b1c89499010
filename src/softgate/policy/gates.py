"""Smooth gates on importance ratios: what a token's gradient is multiplied by as its ratio leaves 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.registry import method

__all__ = ["GATES", "sapo_gate"]

#: ``(ratio, tau) -> (value, weight)``; the weight is the derivative of the value by the ratio. An admissible one is 1
#: at ratio 1, nowhere negative, with one maximum, and ratio times weight goes to 0 at both ends. ``tau`` broadcasts.
Gate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    ratio = torch.rand(3, 4, generator=generator, dtype=torch.float64) * 3
    yield (ratio.to(dtype).requires_grad_(), 1.05), {}
    tau = torch.rand(4, generator=generator, dtype=torch.float64) * 3 + 0.5
    yield (ratio.to(dtype).requires_grad_(), tau.to(dtype)), {}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    ratio = torch.ones(2, 3)
    for tau in (0.0, -1.0, math.nan, math.inf, torch.zeros(3), torch.full((3,), math.nan), torch.ones(2)):
        yield (ratio, tau), {}, ValueError, "tau"
    for other in ("1", None, True, torch.ones(3, dtype=torch.int64)):
        yield (ratio, other), {}, TypeError, "tau"


def _sapo(ratio: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
    x = tau * (ratio - 1)
    p = torch.sigmoid(x)
    # p (1 - p) as a product of two sigmoids: 1 - p is 0 from x = 17 on in float32
    return p * 4 / tau, 4 * p * torch.sigmoid(-x)


def _tanh(ratio: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
    value = torch.tanh(tau * (ratio - 1))
    return value / tau, 1 - value.square()


def _gaussian(ratio: Tensor, tau: Tensor | float) -> tuple[Tensor, Tensor]:
    x = tau * (ratio - 1) / 2
    return math.sqrt(math.pi) * torch.erf(x) / tau, torch.exp(-x.square())


#: The gates that have a name.
GATES: dict[str, Gate] = {"sapo": _sapo, "tanh": _tanh, "gaussian": _gaussian}


def _reference(ratio: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if ratio.dtype.itemsize == 2 else ratio.dtype
    value, weight = _sapo(ratio.to(dtype), tau.to(dtype) if isinstance(tau, Tensor) else tau)
    return value.to(ratio.dtype), weight.to(ratio.dtype)


@method(
    site="policy",
    family="custom",
    paper="sapo",
    source="f(r) = (4 / tau) sigma(tau (r - 1)) and its derivative sech^2(tau (r - 1) / 2)",
    reference=_reference,
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
)
def sapo_gate(ratio: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    r"""The gate of SAPO: what replaces the ratio in the objective, and the weight that its gradient gets.

    .. math:: f_\tau(r) = \frac{4}{\tau} \sigma(\tau (r - 1)), \qquad
              w_\tau(r) = f_\tau'(r) = \operatorname{sech}^2(\tau (r - 1) / 2)

    ``w(1) = 1`` for every ``tau``; for ``tau = 1`` half height is at ``r = 2.76``, and ``w(0) = 0.79``: it removes
    outliers and is no narrow trust region.

    Args:
        ratio: importance ratios, any shape.
        tau: temperature, positive and finite; a number or a tensor that broadcasts to ``ratio``.

    Returns:
        Value, in (0, 4/tau), and weight, in [0, 1], of the shape and dtype of ``ratio``.

    Raises:
        ArgumentTypeError: ``ratio`` is not floating point, or ``tau`` is no number or floating-point tensor.
        ArgumentValueError: ``tau`` is not positive and finite, or does not broadcast.

    Example:
        >>> value, weight = sapo_gate(torch.tensor([0.0, 1.0, 3.0]), 1.0)
        >>> weight
        tensor([0.7864, 1.0000, 0.4200])

    Paper: Soft Adaptive Policy Optimization, arXiv 2511.20347, sec. 3.
    """
    check_float_tensor("ratio", ratio)
    return _reference(ratio, check_tau("tau", tau, ratio.shape))


def check_tau(name: str, tau: Any, shape: torch.Size) -> float | Tensor:
    """The temperature if it is positive, finite and broadcasts to ``shape``."""
    if not isinstance(tau, Tensor):
        return check_number(name, tau, low=0.0, low_open=True, high_open=True)
    check_float_tensor(name, tau)
    try:
        fits = torch.broadcast_shapes(tau.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        bad_value(name, tuple(tau.shape), f"broadcastable to {tuple(shape)}")
    if transform_reason(tau) is None and not bool(((tau > 0) & tau.isfinite()).all()):
        raise ArgumentValueError(f"{name} must be positive and finite, got a tensor with other entries")
    return tau


def tau_of(advantages: Tensor, tau_pos: float | Tensor, tau_neg: float | Tensor) -> Tensor:
    """The temperature of every token, in the dtype of the advantages: ``tau_pos`` where they are positive."""
    positive, negative = (
        torch.as_tensor(tau, dtype=advantages.dtype, device=advantages.device) for tau in (tau_pos, tau_neg)
    )
    return torch.where(advantages > 0, positive, negative)


def find_gate(gate: Any) -> Gate:
    """The gate that a name or a callable stands for."""
    if callable(gate):
        found: Gate = gate
        return found
    if not isinstance(gate, str):
        bad_type("gate", gate, f"a callable or one of {', '.join(map(repr, GATES))}")
    if gate not in GATES:
        bad_value("gate", gate, f"a callable or one of {', '.join(map(repr, GATES))}")
    return GATES[gate]
