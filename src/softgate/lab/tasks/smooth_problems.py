"""Full-batch problems with known minima or known data: smooth maxima, powers of residuals, regressions on tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.lab import seeds
from softgate.lab.data.tables import bundled
from softgate.optim import LinearPowerResidual, LogisticRegression, LogSumExp, SoftmaxRegression

__all__ = ["log_sum_exp_at_zero", "power_residual", "table_regression"]


def _uniform(shape: tuple[int, ...], seed: int, name: str, device: str) -> Tensor:
    """Uniform numbers in [-1, 1), drawn on the CPU: the same on every device."""
    drawn = torch.rand(shape, generator=seeds.generator(seed, name, *shape), dtype=torch.float64)
    return (2.0 * drawn - 1.0).to(device)


def log_sum_exp_at_zero(n: int, m: int, mu: float, seed: int, device: str = "cpu") -> tuple[LogSumExp, Tensor, float]:
    """A smooth maximum of m random affine functions of n variables whose minimum is at 0.

    Returns:
        The function, the metric ``AᵀA`` of the rows before they were shifted, and the minimum.
    """
    A, b = _uniform((m, n), seed, "rows", device), _uniform((m,), seed, "offsets", device)
    metric = LogSumExp(A).metric()
    f = LogSumExp.with_optimum_at_zero(A, b, mu)
    return f, metric, float(f(torch.zeros(n, dtype=torch.float64, device=device)))


def power_residual(m: int, n: int, p: float, seed: int, device: str = "cpu") -> LinearPowerResidual:
    """``‖Ax - b‖^p / p`` with random A (m, n) and b; for m ≤ n its minimum is 0."""
    A, b = _uniform((m, n), seed, "matrix", device), _uniform((m,), seed, "targets", device)
    return LinearPowerResidual(A, b, p)


def table_regression(name: str, l2: float) -> LogisticRegression | SoftmaxRegression:
    """Regression of the classes of a table that scikit-learn brings along, columns scaled, with a constant column."""
    table = bundled(name)
    spread = table.features.std(0)
    scaled = (table.features - table.features.mean(0)) / torch.where(spread > 0, spread, 1.0)
    X = torch.cat([scaled, scaled.new_ones(len(scaled), 1)], 1)
    made: Any = LogisticRegression if len(table.classes) == 2 else SoftmaxRegression
    return made(X, table.labels, l2=l2)
