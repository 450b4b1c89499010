"""What an objective did to a batch: how far the policy has moved, and how much of the gradient passed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PolicyStats"]


class PolicyStats(NamedTuple):
    """Figures of one batch, 0-d tensors without gradient, over the tokens that the mask keeps.

    The gate of a token is its gradient relative to that of ``-ratio * A``: 1 on policy, 0 where a clip cuts it off.

    Attributes:
        gate_mean: mean gate.
        gate_min: smallest gate.
        ess: effective sample size of the ratios, ``(sum r)^2 / (n sum r^2)``, in (0, 1].
        ratio_max: largest ratio.
        zero_grad_fraction: share of the tokens with a nonzero advantage whose gradient is exactly 0.
        approx_kl_k1: mean of ``old_logp - logp``, nats per token.
        approx_kl_k3: mean of ``r - 1 - log r``, nats per token.
        entropy: mean entropy of the policy in nats per token, if the caller knows it.
    """

    gate_mean: Tensor
    gate_min: Tensor
    ess: Tensor
    ratio_max: Tensor
    zero_grad_fraction: Tensor
    approx_kl_k1: Tensor
    approx_kl_k3: Tensor
    entropy: Tensor | None = None

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """The figures as numbers under their names, for a log; without those that are None."""
        return {f"{prefix}{name}": float(value) for name, value in self._asdict().items() if value is not None}


@torch.no_grad()
def policy_stats(
    gate: Tensor,
    log_weight: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    entropy: Tensor | None = None,
) -> PolicyStats:
    """Statistics of a batch.

    Args:
        gate: gate of every token, broadcastable to ``(B, T)``.
        log_weight: logarithm of the ratio that the objective uses, broadcastable to ``(B, T)``.
        log_ratio: ``logp - old_logp`` of every token, clamped, ``(B, T)``.
        advantages: ``(B, T)``.
        mask: bool ``(B, T)``.
        entropy: entropy of the policy at every token ``(B, T)``, or None.
    """
    count = mask.sum().clamp(min=1)
    gate = gate.expand_as(mask)
    some = mask.any() if mask.numel() else mask.new_zeros(())
    ratio = torch.where(mask, log_weight.exp(), 0.0)
    acting = mask & (advantages != 0)
    cut = (acting & (gate == 0)).sum() / acting.sum().clamp(min=1)
    total, square = ratio.sum(), ratio.square().sum()
    tiny = torch.finfo(ratio.dtype).tiny

    def mean(values: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0).sum() / count

    return PolicyStats(
        gate_mean=mean(gate),
        gate_min=torch.where(some, _least(torch.where(mask, gate, float("inf"))), 1.0),
        ess=torch.where(some, total.square() / (count * square).clamp(min=tiny), 1.0),
        ratio_max=torch.where(some, -_least(-ratio), 1.0),
        zero_grad_fraction=cut.to(ratio.dtype),
        approx_kl_k1=mean(-log_ratio),
        approx_kl_k3=mean(torch.expm1(log_ratio) - log_ratio),
        entropy=None if entropy is None else mean(entropy.to(ratio.dtype)),
    )


def _least(values: Tensor) -> Tensor:
    return values.min() if values.numel() else values.new_zeros(())
