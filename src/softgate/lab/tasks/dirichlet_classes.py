"""Two classes of points from Dirichlet distributions, whose best possible classifier is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab import seeds

__all__ = ["CONCENTRATIONS", "DirichletClasses", "dirichlet_classes"]

#: Concentrations of class +1 and class -1 by the number of coordinates, as in the paper's study.
CONCENTRATIONS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    2: ((1, 2), (2, 1)),
    3: ((0.5, 0.5, 2.5), (2.5, 0.1, 0.5)),
    5: ((3, 1, 2, 1, 1), (1, 2, 2, 2, 3)),
    9: ((1, 2, 1, 2, 1, 1, 1, 1, 1), (1, 1, 1, 2, 3, 4, 2, 2, 1)),
}


class DirichletClasses(NamedTuple):
    """Points on the unit sphere and their classes.

    Attributes:
        train: points (rows, dim), float64.
        train_labels: +1 or -1, (rows,).
        test: points (tests, dim).
        test_labels: +1 or -1, (tests,).
        best: what the Bayes rule says of the test points, +1 or -1, (tests,).
    """

    train: NDArray[np.float64]
    train_labels: NDArray[np.int64]
    test: NDArray[np.float64]
    test_labels: NDArray[np.int64]
    best: NDArray[np.int64]


def dirichlet_classes(seed: int, dim: int, rows: int, tests: int, prior: float = 0.4) -> DirichletClasses:
    """Draw both classes in the exact proportion of the prior, shuffle, scale to the unit sphere.

    Args:
        seed: of everything. The test points do not depend on ``rows``.
        dim: number of coordinates: 2, 3, 5 or 9.
        rows: number of training points.
        tests: number of test points.
        prior: share of class +1.
    """
    if dim not in CONCENTRATIONS:
        raise ArgumentValueError(f"dim must be one of {sorted(CONCENTRATIONS)}, got {dim!r}")
    drawn = [_draw(seed, name, dim, count, prior) for name, count in (("train", rows), ("test", tests))]
    (train, labels), (test, test_labels) = drawn
    # on the simplex itself; a coordinate may round to 0, where the density of small concentrations is infinite
    points = torch.from_numpy(test).clamp_min(1e-300)
    first, second = (_log_density(concentration, points) for concentration in CONCENTRATIONS[dim])
    odds = first - second + np.log(prior) - np.log1p(-prior)
    best = np.where(odds.numpy() > 0.0, 1, -1)
    return DirichletClasses(_on_sphere(train), labels, _on_sphere(test), test_labels, best)


def _draw(seed: int, name: str, dim: int, count: int, prior: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seeds.derive(seed, "dirichlet", dim, name))
    sizes = int(count * prior), count - int(count * prior)
    points = np.concatenate([random.dirichlet(c, size) for c, size in zip(CONCENTRATIONS[dim], sizes, strict=True)])
    labels = np.repeat([1, -1], sizes)
    order = random.permutation(count)
    return points[order], labels[order]


def _log_density(values: tuple[float, ...], points: Tensor) -> Tensor:
    concentration = torch.tensor(values, dtype=torch.float64)
    constant = torch.lgamma(concentration.sum()) - torch.lgamma(concentration).sum()
    return torch.xlogy(concentration - 1.0, points).sum(1) + constant


def _on_sphere(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points / np.linalg.norm(points, axis=1, keepdims=True)
