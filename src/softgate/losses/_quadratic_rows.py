"""Softmax with a quadratic in place of the exponential for the block kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgate._math.compress import exclusive_log_softmax

__all__: list[str] = []


def log_quadratic(x: Tensor, shift: float, floor: float) -> Tensor:
    """``log((x + shift)^2 + floor)`` without overflow of the square."""
    return 2.0 * torch.hypot(x + shift, x.new_full((), floor**0.5)).log()


@dataclass(frozen=True)
class QuadraticRows:
    """Scores ``(x + shift)^2 + floor``; see :class:`softgate.losses._row_kernel.RowMath`. The pivot is not needed."""

    shift: float
    floor: float

    def score(self, x: Tensor) -> Tensor:
        """``(x + shift)^2 + floor``."""
        return (x + self.shift).square() + self.floor

    def rest(self, x: Tensor, index: Tensor, scratch: tuple[Tensor, Tensor], pivot: Tensor, rest: Tensor) -> None:
        """Sum of the other scores."""
        scores, _ = scratch
        torch.add(x, self.shift, out=scores).square_().add_(self.floor)
        torch.sum(scores.scatter_(1, index, 0.0), 1, keepdim=True, out=rest)
        pivot.zero_()

    def finish(self, x_target: Tensor, pivot: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """``log(1 + rest / score)`` and the sum of all scores."""
        own = self.score(x_target)
        return (rest / own).log1p(), rest + own

    def slopes(self, x: Tensor, out: Tensor, pivot: Tensor, scale: Tensor) -> None:
        """``2 (x + shift) scale``."""
        torch.add(x, self.shift, out=out).mul_(2.0 * scale)

    def slope_at_target(self, x_target: Tensor, pivot: Tensor, rest: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        """``-2 (x + shift) rest / (total score)``, without a difference."""
        return -2.0 * (x_target + self.shift) * (rest / total / self.score(x_target)) * grad

    def rows(self, x: Tensor, index: Tensor) -> Tensor:
        """The same in logarithms, for rows that overflow."""
        log_p = exclusive_log_softmax(log_quadratic(x, self.shift, self.floor), 1)
        return -log_p.gather(1, index.unsqueeze(1)).squeeze(1)
