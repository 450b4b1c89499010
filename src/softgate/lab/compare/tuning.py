"""The learning rate of every variant: the same grid, the same seed, judged on the validation part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from softgate.errors import ArgumentValueError

__all__ = ["TUNING_SEED", "Rate", "choose_rate", "parse_grid"]

#: Seed of the runs that try learning rates; the seeds of the table are 0, 1, … and stay below it.
TUNING_SEED = 1000


@dataclass(frozen=True)
class Rate:
    """The learning rate of one variant.

    Attributes:
        lr: the chosen one.
        tried: learning rate -> figure of the validation part, NaN where the run diverged or failed.
        edge: ``"lowest"`` or ``"highest"`` if the best rate is at that end of the grid, so that a better one may lie
            beyond; empty otherwise, and with a grid of one.
    """

    lr: float
    tried: dict[float, float]
    edge: str = ""


def parse_grid(text: str) -> tuple[float, ...]:
    """Read ``"1e-3,3e-3"``: learning rates, positive, in rising order whatever the order given."""
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0.0 < rate < math.inf for rate in rates):
        raise ArgumentValueError(
            f"--lr-grid must be positive numbers between commas, such as 1e-3,3e-3,1e-2, got {text!r}"
        )
    return tuple(rates)


def choose_rate(tried: Mapping[float, float], better: str) -> Rate:
    """The best of the tried rates; of equally good ones the middle one, so that ties do not run to the edge."""
    rates = sorted(tried)
    finite = [rate for rate in rates if math.isfinite(tried[rate])]
    if not finite or len(rates) == 1:
        return Rate(rates[0], dict(tried))
    best = (min if better == "lower" else max)(tried[rate] for rate in finite)
    equal = [rate for rate in finite if tried[rate] == best]
    ends = {rates[0]: "lowest", rates[-1]: "highest"}
    chosen = min(equal, key=lambda rate: abs(rates.index(rate) - (len(rates) - 1) / 2))
    return Rate(chosen, dict(tried), ends.get(chosen, "") if len(equal) == 1 else "")
