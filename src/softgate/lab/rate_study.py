"""Studies of convergence rates: the same fit at many sample sizes, many times, and the slopes on log-log axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from softgate.lab.cell import CellRun
from softgate.routing import convergence_rate

__all__ = ["log_sizes", "rate_figures", "study"]

Array = NDArray[np.float64]


def log_sizes(low: int, high: int, count: int) -> list[int]:
    """``count`` sample sizes, equally spaced in the logarithm."""
    return [round(n) for n in np.geomspace(low, high, count).tolist()]


def study(
    run: CellRun, sizes: Sequence[int], replicates: int, once: Callable[[int, int], Mapping[str, float]]
) -> dict[str, Array]:
    """Call ``once(n, seed)`` for all sizes and replicates; gather what it measures as (sizes, replicates) arrays.

    Seeds are 1000 · replicate + n, as far apart for different seeds of the run as no replicate gets.
    """
    found: dict[str, Array] = {}
    for row, n in enumerate(sizes):
        for replicate in range(replicates):
            measured = once(n, 1000 * replicate + n + 10**9 * run.seed)
            for name, value in measured.items():
                table = found.setdefault(name, np.full((len(sizes), replicates), np.nan))
                table[row, replicate] = value
        run.log(row + 1, len(sizes), n=float(n))
    return found


def rate_figures(
    name: str, sizes: Sequence[int], losses: Array, statistic: str = "mean"
) -> dict[str, float | Sequence[float]]:
    """Figures of one loss: its curve over n with quartiles over replicates, the fitted slope and its 95 % interval."""
    summary = np.nanmean if statistic == "mean" else np.nanmedian
    rate = convergence_rate(sizes, losses, statistic=statistic)
    ns = np.array(sizes, dtype=float)
    return {
        name: summary(losses, axis=1).tolist(),
        f"{name}_low": np.nanquantile(losses, 0.25, axis=1).tolist(),
        f"{name}_high": np.nanquantile(losses, 0.75, axis=1).tolist(),
        f"line_{name}": np.exp(rate.intercept + rate.slope * np.log(ns)).tolist(),
        f"slope_{name}": rate.slope,
        f"slope_{name}_low": rate.low,
        f"slope_{name}_high": rate.high,
    }
