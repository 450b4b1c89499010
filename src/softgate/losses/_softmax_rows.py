"""Softmax cross-entropy for the block kernel, and for every loss that is a function of it."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._math.compress import exclusive_log_softmax

__all__: list[str] = []


class SoftmaxRows:
    """``rest`` leaves the target's exponential out, so ``1 - p_y = rest / total``; the pivot is the maximum."""

    @staticmethod
    def rest(x: Tensor, index: Tensor, scratch: tuple[Tensor, Tensor], pivot: Tensor, rest: Tensor) -> None:
        """Sum of the other exponentials over the largest one; the pivot is the maximum."""
        scores, _ = scratch
        torch.amax(x, 1, keepdim=True, out=pivot)
        torch.sub(x, pivot, out=scores).exp_()
        torch.sum(scores.scatter_(1, index, 0.0), 1, keepdim=True, out=rest)

    @staticmethod
    def finish(x_target: Tensor, pivot: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """``log(total)`` and the total, from ``log1p`` where the target is the maximum."""
        gap = pivot - x_target
        total = rest + torch.exp(-gap)
        return gap + torch.where(gap == 0.0, rest.log1p(), total.log()), total

    @staticmethod
    def slopes(x: Tensor, out: Tensor, pivot: Tensor, scale: Tensor) -> None:
        """``scale exp(x - max)``."""
        torch.sub(x, pivot, out=out).exp_().mul_(scale)

    @staticmethod
    def slope_at_target(x_target: Tensor, pivot: Tensor, rest: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        """``-(1 - p_y)``, without a difference."""
        return -grad * (rest / total)

    @staticmethod
    def rows(x: Tensor, index: Tensor) -> Tensor:
        """The same in logarithms, for rows that overflow."""
        return -exclusive_log_softmax(x, 1).gather(1, index.unsqueeze(1)).squeeze(1)
