"""Whether a difference is more than chance: paired over seeds, corrected for the number of comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LEVEL", "Comparison", "compare_with_baseline", "holm", "student_quantile", "student_tails"]

#: Chance of calling any variant better or worse although none is.
LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """One variant beside the baseline.

    Attributes:
        verdict: ``"baseline"``, ``"better"``, ``"worse"``, ``"no difference seen"``, ``"one seed"`` or ``"diverged"``.
        difference: mean over seeds of variant - baseline; None where a run diverged or is missing.
        low: lower end of the 95 % interval of the difference, for this comparison alone; None with one seed.
        high: its upper end.
        p: chance of a difference at least as large if there were none, two-sided paired t-test.
        adjusted: the same after Holm's correction over the variants; the verdict goes by this one.
        detectable: differences below this cannot be told from none with these seeds.
        reason: what the verdict rests on, in words.
    """

    verdict: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None
    detectable: float | None = None
    reason: str = ""


def compare_with_baseline(
    values: Mapping[str, Sequence[float]], *, better: str, resolution: float = 0.0
) -> dict[str, Comparison]:
    """Judge every variant against the first one.

    Args:
        values: variant -> one figure per seed, in the same order of seeds for all; NaN where a run diverged or failed.
        better: ``"lower"`` or ``"higher"``.
        resolution: smallest step of the figure, 1/rows for an accuracy: seeds that agree within it are not taken to
            agree any closer.

    Returns:
        variant -> comparison; the baseline is in it too.
    """
    baseline, *others = values
    whole = {label: _finite(values[label]) for label in values}
    seeds = len(values[baseline])
    tested = [label for label in others if whole[label] and whole[baseline] and seeds > 1]
    found = {label: _paired(values[label], values[baseline], resolution, len(tested)) for label in tested}
    adjusted = holm([item["p"] for item in found.values()])
    result = {baseline: Comparison("baseline" if whole[baseline] else "diverged", reason=_gaps(values[baseline]))}
    for label in others:
        if label in found:
            result[label] = _judged(found[label], adjusted[tested.index(label)], better, seeds)
        elif whole[label] and whole[baseline]:
            difference = values[label][0] - values[baseline][0]
            result[label] = Comparison("one seed", difference, reason="one seed says nothing about chance")
        else:
            gaps = values[label] if not whole[label] else values[baseline]
            of = "" if not whole[label] else "of the baseline "
            result[label] = Comparison("diverged", reason=_gaps(gaps, of))
    return result


def _finite(values: Sequence[float]) -> bool:
    return bool(values) and all(map(math.isfinite, values))


def _gaps(values: Sequence[float], of: str = "") -> str:
    missing = sum(not math.isfinite(value) for value in values)
    return f"{missing} of {len(values)} runs {of}diverged or failed" if missing else ""


def _paired(first: Sequence[float], second: Sequence[float], resolution: float, comparisons: int) -> dict[str, Any]:
    """Mean difference, its 95 % interval, p, and what could have been detected."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count
    error = max(statistics.stdev(differences), resolution) / math.sqrt(count)
    width = student_quantile(LEVEL, count - 1) * error
    t = abs(mean) / error if error > 0.0 else math.inf if mean else 0.0
    detectable = student_quantile(LEVEL / comparisons, count - 1) * error
    return {
        "difference": mean,
        "low": mean - width,
        "high": mean + width,
        "p": student_tails(t, count - 1),
        "detectable": detectable,
    }


def _judged(found: Mapping[str, Any], adjusted: float, better: str, seeds: int) -> Comparison:
    if adjusted < LEVEL:
        good = (found["difference"] < 0.0) == (better == "lower")
        reason = f"{seeds} seeds, p = {adjusted:.2g} after Holm's correction"
        return Comparison("better" if good else "worse", **found, adjusted=adjusted, reason=reason)
    reason = f"{seeds} seeds: cannot tell below {found['detectable']:.2g}"
    return Comparison("no difference seen", **found, adjusted=adjusted, reason=reason)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below the level for all that are significant at that level together."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def student_tails(t: float, freedom: int) -> float:
    """P(|T| > t) of Student's distribution with a whole number of degrees of freedom (Abramowitz, Stegun 26.7.3-4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom == 1:
        return 1.0 - 2.0 * angle / math.pi
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term
    for k in range(3 if odd else 2, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = math.sin(angle) * total
    inside = 2.0 / math.pi * (angle + inside) if odd else inside
    return min(1.0, max(0.0, 1.0 - inside))


def student_quantile(tails: float, freedom: int) -> float:
    """The t with P(|T| > t) = ``tails``, by bisection."""
    low, high = 0.0, 1.0
    while student_tails(high, freedom) > tails:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if student_tails(middle, freedom) > tails else (low, middle)
    return 0.5 * (low + high)
