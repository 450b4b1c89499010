"""The scalar part of the comp-sum losses: loss and gradient weight of a row from the log-probability of its target.

Whatever computes ``log p_y`` (a reference, a fused linear head) gets the whole family from these two functions, because
the gradient with respect to the logits is that of softmax cross-entropy times the weight: ``w (p - e_y)``.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

__all__: list[str] = []

#: Below this exponent ``exp(x) - 1`` loses nothing, and ``expm1(x) + 1``, its derivative in torch, loses everything.
_SPLIT = -0.5


def phi(log_p: Tensor, tau: float, *, max_weight: float | None = None) -> Tensor:
    r"""Loss of a row, ``(1 - p^(tau - 1)) / (tau - 1)``, and ``-log p`` at ``tau = 1``.

    Where ``p^(tau - 1)`` exceeds ``max_weight`` (only for ``tau < 1``) the loss goes on linearly in ``-log p``, so that
    it stays the integral of its weight.

    Args:
        log_p: log-probability of the target, any shape, at most 0; ``-inf`` is a target of probability 0.
        tau: member of the family, 0 or larger.
        max_weight: largest gradient weight, at least 1; None: half the largest number of the dtype, because an
            infinite weight times a probability of 0 would be NaN.

    Returns:
        Losses of the shape and dtype of ``log_p``, with all derivatives accurate: ``-d phi / d log_p`` is
        :func:`phi_weight` down to the smallest weight.

    Source: arXiv 2304.07288, sec. 2 (Phi_tau of ``u = 1 / p - 1``).
    """
    if tau == 1.0:
        return -log_p
    if tau > 1.0:
        return _expm1((tau - 1.0) * log_p) / (1.0 - tau)
    cap = _cap(log_p, max_weight)
    edge = log(cap) / (tau - 1.0)
    beyond = log_p < edge
    inner = _expm1((tau - 1.0) * torch.where(beyond, edge, log_p)) / (1.0 - tau)
    return inner + torch.where(beyond, cap * (edge - log_p), 0.0)


def phi_weight(log_p: Tensor, tau: float, *, max_weight: float | None = None) -> Tensor:
    """Weight of the softmax gradient, ``-d phi / d log_p = p^(tau - 1)``, at most ``max_weight``.

    Args:
        log_p: log-probability of the target, any shape.
        tau: member of the family, 0 or larger.
        max_weight: as in :func:`phi`.

    Returns:
        Weights of the shape and dtype of ``log_p``: 1 at ``tau = 1``, in [0, 1] above, 1 or larger below.
    """
    if tau == 1.0:
        return torch.ones_like(log_p)
    weight = torch.exp((tau - 1.0) * log_p)
    return weight if tau > 1.0 else weight.clamp(max=_cap(log_p, max_weight))


def _cap(log_p: Tensor, max_weight: float | None) -> float:
    return torch.finfo(log_p.dtype).max / 2 if max_weight is None else max_weight


def _expm1(x: Tensor) -> Tensor:
    """``exp(x) - 1`` with full relative precision in its value and in its derivatives, ``exp(x)``."""
    low = x < _SPLIT
    # each branch sees a harmless number where the other one is taken: 0 times an infinite slope would be NaN
    return torch.where(low, torch.exp(torch.where(low, x, -1.0)) - 1.0, torch.expm1(torch.where(low, 0.0, x)))
