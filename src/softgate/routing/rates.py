"""At which power of the sample size a loss falls, with a bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, bad_type, check_choice

__all__ = ["Rate", "convergence_rate"]

Array = NDArray[np.float64]


class Rate(NamedTuple):
    """A straight line through (log n, log loss).

    Attributes:
        slope: exponent of n.
        low: lower end of the bootstrap interval of the slope.
        high: its upper end.
        intercept: log loss at n = 1.
    """

    slope: float
    low: float
    high: float
    intercept: float


def convergence_rate(
    ns: ArrayLike,
    losses: ArrayLike,
    *,
    statistic: str = "mean",
    confidence: float = 0.95,
    n_boot: int = 2000,
    random_state: int | np.random.Generator | None = 0,
) -> Rate:
    """Least-squares slope of the logarithm of the mean (or median) loss over the logarithm of the sample size.

    The interval is the percentile bootstrap over replicates, drawn anew at every size.

    Args:
        ns: (s,) sample sizes, positive, at least two different ones.
        losses: (s, replicates) losses, positive; NaN stands for a replicate that failed and is left out.
        statistic: ``"mean"`` or ``"median"`` over replicates. Means of losses with a few failed fits say little.
        confidence: of the interval, in (0, 1).
        n_boot: number of bootstrap draws.
        random_state: seed of the draws.

    Returns:
        A :class:`Rate`; with a single replicate the interval is NaN.

    Raises:
        ArgumentValueError: shapes that do not fit, sizes or losses that are not positive, a size without any loss.

    Example:
        >>> import numpy as np
        >>> ns = np.array([100, 1000, 10000])
        >>> round(convergence_rate(ns, 3 / np.sqrt(ns)[:, None]).slope, 6)
        -0.5
    """
    check_choice("statistic", statistic, ("mean", "median"))
    check_number("confidence", confidence, low=0.0, high=1.0, low_open=True, high_open=True)
    if isinstance(n_boot, bool) or not isinstance(n_boot, int):
        bad_type("n_boot", n_boot, "an int")
    sizes, values = np.asarray(ns, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if sizes.ndim != 1 or values.ndim != 2 or len(values) != len(sizes) or n_boot < 1:
        raise ArgumentValueError(f"losses must be (sizes, replicates) for {len(sizes)} ns, got {values.shape}")
    if not (np.isfinite(sizes) & (sizes > 0)).all() or len(np.unique(sizes)) < 2:
        raise ArgumentValueError(f"ns must be positive and hold at least two different sizes, got {sizes}")
    present = ~np.isnan(values)
    if not (values[present] > 0).all() or not present.any(1).all():
        raise ArgumentValueError("losses must be positive (NaN for failed replicates), some at every size")
    summary = np.nanmean if statistic == "mean" else np.nanmedian
    slope, intercept = np.polyfit(np.log(sizes), np.log(summary(values, axis=1)), 1)
    low, high = np.nan, np.nan
    if (present.sum(1) > 1).all():
        slopes = _bootstrap(sizes, values, present, statistic, n_boot, np.random.default_rng(random_state))
        tail = (1 - confidence) / 2
        low, high = np.quantile(slopes, [tail, 1 - tail])
    return Rate(float(slope), float(low), float(high), float(intercept))


def _bootstrap(
    sizes: Array, values: Array, present: NDArray[np.bool_], statistic: str, draws: int, rng: np.random.Generator
) -> Array:
    summaries = np.empty((len(sizes), draws))
    for row, (losses, there) in enumerate(zip(values, present, strict=True)):
        kept = losses[there]
        drawn = kept[rng.integers(len(kept), size=(draws, len(kept)))]
        summaries[row] = drawn.mean(1) if statistic == "mean" else np.median(drawn, axis=1)
    centred = np.log(sizes) - np.log(sizes).mean()
    return np.asarray(centred @ np.log(summaries) / (centred @ centred))
