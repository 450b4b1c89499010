"""Streams of losses for online learners: linear, strongly convex, regression and classification, with best points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from softgate.lab import data, seeds
from softgate.optim import Ball

__all__ = [
    "LinearStream",
    "LogisticStream",
    "OnlineStream",
    "QuadraticStream",
    "RegressionStream",
    "digits_stream",
    "kdd_stream",
    "rotating_costs",
    "stationary_regression",
    "switching_costs",
    "switching_regression",
]

BALL = Ball(1.0)


class OnlineStream(Protocol):
    """Losses of rounds 0, 1, … over the unit ball."""

    @property
    def rounds(self) -> int:
        """How many."""

    @property
    def dim(self) -> int:
        """Entries of a point."""

    def grad(self, t: int, x: Tensor) -> Tensor:
        """Gradient of round t at ``x``, ``(*batch, d)``."""

    def losses(self, points: Tensor) -> Tensor:
        """Loss of every round at its own point: ``(rounds, *batch, d)`` to ``(rounds, *batch)``."""

    def best(self, rounds: int) -> Tensor:
        """The point with the smallest sum over the first ``rounds`` rounds, ``(*batch, d)``."""


@dataclass(frozen=True)
class LinearStream:
    """``⟨c_t, x⟩``.

    Attributes:
        costs: ``(rounds, *batch, d)``.
    """

    costs: Tensor

    @property
    def rounds(self) -> int:
        """See :class:`OnlineStream`."""
        return len(self.costs)

    @property
    def dim(self) -> int:
        """See :class:`OnlineStream`."""
        return self.costs.shape[-1]

    def grad(self, t: int, x: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return self.costs[t]

    def losses(self, points: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return (self.costs * points).sum(-1)

    def best(self, rounds: int) -> Tensor:
        """See :class:`OnlineStream`."""
        return -torch.nn.functional.normalize(self.costs[:rounds].sum(0), dim=-1)


@dataclass(frozen=True)
class QuadraticStream:
    """``λ‖x - z_t‖²/2``.

    Attributes:
        targets: ``(rounds, *batch, d)``, in the ball.
        lam: λ.
    """

    targets: Tensor
    lam: float

    @property
    def rounds(self) -> int:
        """See :class:`OnlineStream`."""
        return len(self.targets)

    @property
    def dim(self) -> int:
        """See :class:`OnlineStream`."""
        return self.targets.shape[-1]

    def grad(self, t: int, x: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return self.lam * (x - self.targets[t])

    def losses(self, points: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return 0.5 * self.lam * (points - self.targets).square().sum(-1)

    def best(self, rounds: int) -> Tensor:
        """See :class:`OnlineStream`."""
        return BALL.project(self.targets[:rounds].mean(0))


@dataclass(frozen=True)
class RegressionStream:
    """``(⟨a_t, x⟩ - b_t)²/2``.

    Attributes:
        rows: ``(rounds, d)``.
        labels: ``(rounds,)``.
    """

    rows: Tensor
    labels: Tensor

    @property
    def rounds(self) -> int:
        """See :class:`OnlineStream`."""
        return len(self.rows)

    @property
    def dim(self) -> int:
        """See :class:`OnlineStream`."""
        return self.rows.shape[-1]

    def grad(self, t: int, x: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return (x @ self.rows[t] - self.labels[t]).unsqueeze(-1) * self.rows[t]

    def losses(self, points: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return 0.5 * ((points * self.rows).sum(-1) - self.labels).square()

    def best(self, rounds: int) -> Tensor:
        """See :class:`OnlineStream`."""
        A, b = self.rows[:rounds], self.labels[:rounds]
        H = A.mT @ A + 1e-9 * torch.eye(A.shape[1], dtype=A.dtype)
        return BALL.project_in_norm(torch.linalg.solve(H, A.mT @ b), H)


@dataclass(frozen=True)
class LogisticStream:
    """``log(1 + exp(-y_t ⟨a_t, R x⟩))``: the weights of a classifier in a ball of radius R.

    Attributes:
        rows: ``(rounds, d)``, of norm at most 1.
        signs: ``(rounds,)`` labels 1 and -1.
        radius: R.
    """

    rows: Tensor
    signs: Tensor
    radius: float

    @property
    def rounds(self) -> int:
        """See :class:`OnlineStream`."""
        return len(self.rows)

    @property
    def dim(self) -> int:
        """See :class:`OnlineStream`."""
        return self.rows.shape[-1]

    def _scores(self, x: Tensor) -> Tensor:
        return self.radius * self.signs * (x * self.rows).sum(-1)

    def grad(self, t: int, x: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        sign = self.signs[t]
        miss = torch.sigmoid(-self.radius * sign * (x @ self.rows[t]))
        return -self.radius * sign * miss.unsqueeze(-1) * self.rows[t]

    def losses(self, points: Tensor) -> Tensor:
        """See :class:`OnlineStream`."""
        return torch.nn.functional.softplus(-self._scores(points))

    def best(self, rounds: int) -> Tensor:
        """See :class:`OnlineStream`; Newton steps, each projected in its own norm."""
        stream = LogisticStream(self.rows[:rounds], self.signs[:rounds], self.radius)
        x = torch.zeros(self.rows.shape[1], dtype=self.rows.dtype)
        for _ in range(30):
            q = torch.sigmoid(-stream._scores(x))
            g = -self.radius * (stream.signs * q) @ stream.rows
            weights = self.radius**2 * q * (1.0 - q)
            H = (stream.rows * weights.unsqueeze(-1)).mT @ stream.rows + 1e-6 * torch.eye(len(x), dtype=x.dtype)
            goal = BALL.project_in_norm(x - torch.linalg.solve(H, g), H)
            values = [float(stream.losses(x + s * (goal - x)).sum()) for s in (1.0, 0.5, 0.1, 0.01, 0.0)]
            x = x + (1.0, 0.5, 0.1, 0.01, 0.0)[values.index(min(values))] * (goal - x)
        return x


def switching_costs(rounds: int, dim: int, sigma: float, switches: int, seed: int, size: float = 0.1) -> Tensor:
    """Costs whose mean of norm ``size`` takes a new direction ``switches`` times, plus noise of expected square σ²."""
    stream = seeds.generator(seed, "switching", rounds, dim)
    noise = torch.randn(rounds, dim, generator=stream, dtype=torch.float64)
    means = torch.randn(switches + 1, dim, generator=seeds.generator(seed, "means", dim), dtype=torch.float64)
    stage = torch.arange(rounds) * (switches + 1) // rounds
    return size * torch.nn.functional.normalize(means, dim=-1)[stage] + sigma / math.sqrt(dim) * noise


def rotating_costs(rounds: int, dim: int, angle: float) -> Tensor:
    """Unit costs that turn by ``angle`` every round, in the plane of the first two coordinates."""
    t = angle * torch.arange(rounds, dtype=torch.float64)
    costs = torch.zeros(rounds, dim, dtype=torch.float64)
    costs[:, 0], costs[:, 1] = torch.cos(t), torch.sin(t)
    return costs


def switching_regression(rounds: int, dim: int, stages: int, seed: int, noise: float = 0.05) -> RegressionStream:
    """Rows of norm at most 1 and labels of a weight vector in the ball that is drawn anew in every stage."""
    stream = seeds.generator(seed, "switching-regression", rounds, dim)
    rows = BALL.project(torch.randn(rounds, dim, generator=stream, dtype=torch.float64) / math.sqrt(dim))
    weights = BALL.project(torch.randn(stages, dim, generator=stream, dtype=torch.float64))
    stage = torch.arange(rounds) * stages // rounds
    labels = (rows * weights[stage]).sum(-1)
    return RegressionStream(rows, labels + noise * torch.randn(rounds, generator=stream, dtype=torch.float64))


def stationary_regression(rounds: int, dim: int, seed: int, noise: float = 0.3) -> RegressionStream:
    """One weight vector for all rounds."""
    return switching_regression(rounds, dim, 1, seed, noise)


def _standardised(features: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1, then rows of norm at most 1, with a constant column."""
    spread = features.std(0)
    columns = torch.where(spread > 0, (features - features.mean(0)) / spread.clamp(min=1e-12), 0.0).clamp(-3.0, 3.0)
    rows = torch.cat((columns, torch.ones(len(columns), 1, dtype=columns.dtype)), 1)
    return rows / rows.norm(dim=1).max()


def digits_stream(seed: int, digit: int = 0, radius: float = 10.0) -> LogisticStream:
    """The digits of scikit-learn in random order, without replacement: is it ``digit``?"""
    table = data.bundled("digits")
    order = torch.randperm(len(table), generator=seeds.generator(seed, "order"))
    signs = torch.where(table.labels == digit, 1.0, -1.0).double()
    return LogisticStream(_standardised(table.features.double())[order], signs[order], radius)


def kdd_stream(seed: int, rounds: int | None = None, radius: float = 10.0, download: bool = False) -> LogisticStream:
    """Connections of NSL-KDD, the training file and then the test file, each shuffled: is it an attack?

    Columns are scaled by the training file alone. Kinds of attack that only the test file has make the labels drift.

    Args:
        seed: of the order within each file.
        rounds: take that many, half of each file.
        radius: of the weights.
        download: fetch the files if they are not on this machine.
    """
    parts, signs = [], []
    for split in ("train", "test"):
        table = data.nsl_kdd(split, download=download)
        order = torch.randperm(len(table.labels), generator=seeds.generator(seed, "order", split))
        order = order if rounds is None else order[: rounds // 2]
        parts.append(table.features[order].double())
        signs.append(torch.where(table.labels[order] == 1, 1.0, -1.0).double())
    mean, spread = parts[0].mean(0), parts[0].std(0)
    scaled = torch.cat([torch.where(spread > 0, (p - mean) / spread.clamp(min=1e-12), 0.0) for p in parts])
    rows = torch.cat((scaled.clamp(-3.0, 3.0), torch.ones(len(scaled), 1, dtype=torch.float64)), 1)
    return LogisticStream(rows / rows.norm(dim=1).max(), torch.cat(signs), radius)
