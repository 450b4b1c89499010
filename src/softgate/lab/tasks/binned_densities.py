"""Conditional distributions over bins whose truth is known: two numbers in, the distribution of a third out."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, check_choice
from softgate.lab import seeds

__all__ = ["DATASETS", "BinnedDensities"]

DATASETS = ("gaussian", "gmm2", "beta")
_STD = 0.1


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> Tensor:
    """The rows as this epoch walks them; drawn once, not at every step of the epoch."""
    return torch.randperm(rows, generator=seeds.generator(seed, "epoch", epoch))


@dataclass(frozen=True)
class BinnedDensities:
    """Triples (x, y, z), cut into equal bins of [-1, 1]; the model sees the bins of x and y and predicts that of z.

    - ``gaussian``: x uniform on (-0.8, 0.8), y ~ N(x, 0.1²), z ~ N(y, 0.1²);
    - ``gmm2``: x and y uniform on (-0.8, 0.8), z ~ N(x, 0.1²) or N(y, 0.1²) with equal chance;
    - ``beta``: x and y as in ``gaussian``, z = ± Beta(100 |x|, 100 |y|).

    Attributes:
        dataset: one of the three.
        seed: draws the triples, the split and the batches.
        rows: number of triples; four fifths are for training.
        bins: m.
        train: inputs (4/5 rows, 2), bin numbers as floats, and targets, int64.
        test: the same for the other rows.
        truth: the true distribution over bins of every test row (1/5 rows, m), float64, given x and y themselves.
    """

    dataset: str
    seed: int
    rows: int = 5000
    bins: int = 50
    train: tuple[Tensor, Tensor] = field(init=False, repr=False)
    test: tuple[Tensor, Tensor] = field(init=False, repr=False)
    truth: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, DATASETS)
        if self.rows < 10 or self.bins < 2 or self.bins % 2:
            raise ArgumentValueError(f"rows must be at least 10 and bins even, got {self.rows}, {self.bins}")
        triples = torch.from_numpy(self._draw(np.random.default_rng(seeds.derive(self.seed, self.dataset))))
        order = torch.randperm(self.rows, generator=seeds.generator(self.seed, "split"))
        triples = triples[order]
        bins = ((triples + 1.0) * (self.bins / 2)).floor().clamp(0, self.bins - 1)
        inputs, targets = bins[:, :2].float(), bins[:, 2].long()
        cut = self.rows * 4 // 5
        for name, value in (
            ("train", (inputs[:cut], targets[:cut])),
            ("test", (inputs[cut:], targets[cut:])),
            ("truth", self._truth(triples[cut:, 0], triples[cut:, 1])),
        ):
            object.__setattr__(self, name, value)

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Rows of update ``step`` (from 0): every epoch walks all training rows in an order of its own."""
        inputs, targets = self.train
        epoch, place = divmod(step, math.ceil(len(targets) / size))
        rows = _order(self.seed, epoch, len(targets))[place * size : (place + 1) * size]
        return inputs[rows], targets[rows]

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        x = random.uniform(-0.8, 0.8, self.rows)
        if self.dataset == "gmm2":
            y = random.uniform(-0.8, 0.8, self.rows)
            z = random.normal(np.where(random.uniform(size=self.rows) < 0.5, x, y), _STD)
        else:
            y = random.normal(x, _STD)
            z = random.normal(y, _STD)
        if self.dataset == "beta":
            z = random.choice([1.0, -1.0], self.rows) * random.beta(100 * np.abs(x), 100 * np.abs(y))
        return np.stack((x, y, z), 1)

    def _truth(self, x: Tensor, y: Tensor) -> Tensor:
        centres = (2 * torch.arange(self.bins, dtype=torch.float64) + 1 - self.bins) / self.bins
        if self.dataset == "beta":
            right = centres[self.bins // 2 :]
            density = torch.distributions.Beta(100 * x.abs(), 100 * y.abs()).log_prob(right[:, None]).exp().T
            values = torch.cat((density.flip(1), density), 1)
            return values / values.sum(1, keepdim=True)
        parts = [torch.softmax(-0.5 * ((centres - mean[:, None]) / _STD).square(), 1) for mean in (x, y)]
        return parts[1] if self.dataset == "gaussian" else 0.5 * (parts[0] + parts[1])
