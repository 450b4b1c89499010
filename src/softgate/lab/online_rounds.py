"""Playing an online learner on a stream of losses, and its regret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from softgate.lab.cell import CellRun
from softgate.lab.tasks.online_streams import OnlineStream

__all__ = ["OnlineLearnerLike", "Restarting", "best_losses", "checkpoints", "play", "regrets"]


class OnlineLearnerLike(Protocol):
    """What a learner of :mod:`softgate.optim` offers."""

    def predict(self) -> Tensor:
        """The point of this round."""

    def update(self, grad: Any) -> None:
        """Take in the gradient, or the function that gives it."""


class Restarting:
    """A learner that is made anew every ``period`` rounds and forgets everything.

    Args:
        make: gives the learner.
        period: rounds.
    """

    def __init__(self, make: Any, period: int) -> None:
        self._make, self._period, self._rounds = make, period, 0
        self._learner: OnlineLearnerLike = make()

    def predict(self) -> Tensor:
        """See :class:`OnlineLearnerLike`."""
        if self._rounds and self._rounds % self._period == 0:
            self._learner = self._make()
        return self._learner.predict()

    def update(self, grad: Any) -> None:
        """See :class:`OnlineLearnerLike`."""
        self._learner.update(grad)
        self._rounds += 1


def play(run: CellRun, learner: OnlineLearnerLike, stream: OnlineStream) -> Tensor:
    """Points that ``learner`` plays on the whole of ``stream``, ``(rounds, *batch, d)``."""
    points = []
    for t in range(stream.rounds):
        points.append(learner.predict())
        learner.update(lambda x, t=t: stream.grad(t, x))
        if (t + 1) % max(1, stream.rounds // 10) == 0:
            run.log(t + 1, stream.rounds)
    return torch.stack(points)


def checkpoints(rounds: int, count: int = 8) -> list[int]:
    """Rounds at which curves are measured: doubling up to the last one."""
    return [max(1, rounds >> shift) for shift in range(count - 1, -1, -1)]


def best_losses(stream: OnlineStream, rounds: int) -> Tensor:
    """Sum of the first ``rounds`` losses of the best fixed point, ``(*batch,)``."""
    best = stream.best(rounds)
    return stream.losses(best.expand(stream.rounds, *best.shape))[:rounds].sum(0)


def regrets(stream: OnlineStream, points: Tensor, at: Sequence[int]) -> Tensor:
    """Regret against the best fixed point of the first t rounds, for every t in ``at``: ``(len(at), *batch)``."""
    sums = stream.losses(points).cumsum(0)
    return torch.stack([sums[t - 1] - best_losses(stream, t) for t in at])
