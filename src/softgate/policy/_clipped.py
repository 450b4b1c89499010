"""The clipped surrogate of a token or a sequence."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.policy.objective_options import TokenLoss

__all__: list[str] = []


class Clips(NamedTuple):
    """Where ratios are cut, see :func:`softgate.policy.grpo_loss`."""

    low: float
    high: float
    delta: float | None = None
    dual_clip: float | None = None

    @property
    def cap(self) -> float:
        """The largest ratio with a gradient where the advantage is negative."""
        return min(float("inf") if cap is None else cap for cap in (self.delta, self.dual_clip))


def check_clips(eps_low: Any, eps_high: Any, delta: Any = None, dual_clip: Any = None) -> Clips:
    """The clips if they are allowed."""
    low = check_number("eps_low", eps_low, low=0.0, high=1.0)
    high = check_number("eps_high", eps_high, low=0.0, high_open=True)
    if delta is not None:
        delta = check_number("delta", delta, low=1 + high, low_open=True, high_open=True)
    if dual_clip is not None:
        dual_clip = check_number("dual_clip", dual_clip, low=1.0, low_open=True, high_open=True)
    return Clips(low, high, delta, dual_clip)


def clipped(log_weight: Tensor, advantages: Tensor, clips: Clips) -> TokenLoss:
    """The clipped surrogate of ratios ``exp(log_weight)``, and where its gradient passes."""
    low, high, delta, dual_clip = clips
    ratio = log_weight.exp()
    capped = ratio if delta is None else ratio.clamp(max=delta)
    loss = -torch.min(capped * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.min(loss, -dual_clip * advantages), loss)
    cut = torch.where(advantages > 0, ratio > 1 + high, (ratio < 1 - low) | (ratio > clips.cap))
    return TokenLoss(loss, (~cut).to(ratio.dtype), log_weight)
