"""From measured cells to verdicts: means and spreads over seeds, and each claim's relation evaluated on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from softgate.lab.paper import Claim, Scale
from softgate.lab.relation import MissingFigure, evaluate, figures_in

Verdict = Literal[
    "reproduced",
    "reproduced in direction",
    "not reproduced",
    "inconclusive",
    "needs hardware",
    "not measured",
]


@dataclass(frozen=True)
class Stat:
    """Mean and spread of one figure over seeds.

    Attributes:
        figure: name of the figure.
        cell: name of the variant.
        mean: arithmetic mean over seeds.
        spread: sample standard deviation over seeds; None for a single seed.
        values: one value per seed.
    """

    figure: str
    cell: str
    mean: float
    spread: float | None
    values: tuple[float, ...]

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Stat:
        """The statistic as ``results.json`` holds it, where null stands for a mean that is NaN."""
        mean = math.nan if item["mean"] is None else item["mean"]
        return cls(item["figure"], item["cell"], mean, item["spread"], tuple(item["values"]))

    @property
    def shown_mean(self) -> str:
        """The mean as every page shows it."""
        return format_number(self.mean)

    @property
    def shown_spread(self) -> str:
        """The spread as every page shows it; empty for a single seed."""
        return "" if self.spread is None else f"{self.spread:.2g}"

    def __str__(self) -> str:
        spread = f" ± {self.shown_spread}" if self.shown_spread else ""
        return f"{self.figure}[{self.cell}] {self.shown_mean}{spread}"


@dataclass(frozen=True)
class Judgement:
    """What came out of one claim.

    Attributes:
        id: the claim's id.
        verdict: see :data:`Verdict`.
        relation: the relation that was evaluated at this scale.
        measured: every figure that the relation mentions.
        seeds_held: on how many seeds the relation held by itself, and of how many; None where not measured.
        reason: why there is no plain verdict, or what was weaker.
    """

    id: str
    verdict: Verdict
    relation: str
    measured: tuple[Stat, ...]
    seeds_held: tuple[int, int] | None = None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


#: rows[cell] = one mapping of figures per finished seed
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def judge(claim: Claim, scale_name: str, scale: Scale, rows: Rows, *, loaded: bool) -> Judgement:
    """Evaluate ``claim`` on what the cells of one scale measured.

    Args:
        claim: the claim.
        scale_name: name of the scale that ran.
        scale: the scale itself.
        rows: per cell, the figures of each finished seed.
        loaded: the machine was busy with other work; a timing miss is then inconclusive.

    Returns:
        The judgement; never raises for missing figures, it says so instead.
    """
    relation = claim.per_scale.get(scale_name, claim.relation)
    if scale_name not in claim.scales:
        beyond = claim.scales == ("paper",)
        verdict: Verdict = "needs hardware" if beyond else "not measured"
        return Judgement(claim.id, verdict, relation, (), reason=f"measured at scale {', '.join(claim.scales)}")
    means = mean_table(rows)
    measured = tuple(_stat(rows, figure, cell) for figure, cell in figures_in(relation) if rows.get(cell))
    try:
        holds = evaluate(relation, means)
        held = _seeds_held(relation, rows)
        weaker = claim.direction is not None and evaluate(claim.direction, means)
    except MissingFigure as missing:
        return Judgement(claim.id, "not measured", relation, (), reason=str(missing))
    if holds:
        return Judgement(claim.id, "reproduced", relation, measured, held)
    if claim.timing and loaded:
        reason = "a timing relation missed while the machine was busy with other work"
        return Judgement(claim.id, "inconclusive", relation, measured, held, reason)
    if weaker:
        return Judgement(claim.id, "reproduced in direction", relation, measured, held, f"holds: {claim.direction}")
    return Judgement(claim.id, "not reproduced", relation, measured, held)


def mean_table(rows: Rows) -> dict[str, dict[str, float]]:
    """Mean over seeds of every scalar figure: ``table[cell][figure]``."""
    table: dict[str, dict[str, float]] = {}
    for cell, seeds in rows.items():
        names = {name for row in seeds for name, value in row.items() if _scalar(value)}
        if seeds:
            table[cell] = {name: _mean(row.get(name) for row in seeds) for name in sorted(names)}
    return table


def _scalar(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _mean(values: Iterable[Any]) -> float:
    numbers = [math.nan if value is None else float(value) for value in values]
    return math.fsum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else sum(numbers) / len(numbers)


def _stat(rows: Rows, figure: str, cell: str) -> Stat:
    raw = [row.get(figure) for row in rows[cell]]
    values = tuple(float(value) if isinstance(value, int | float) else math.nan for value in raw)
    spread = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
    return Stat(figure, cell, _mean(raw), spread, values)


def _seeds_held(relation: str, rows: Rows) -> tuple[int, int]:
    """Evaluate the relation on each seed alone; a cell measured once stands for every seed."""
    cells = {cell for _, cell in figures_in(relation)}
    count = max(len(rows[cell]) for cell in cells)
    usable = [cell for cell in cells if len(rows[cell]) in (1, count)]
    if len(usable) < len(cells):
        count = min(len(rows[cell]) for cell in cells)
    held = 0
    for seed in range(count):
        table = {cell: rows[cell][seed if len(rows[cell]) > 1 else 0] for cell in cells}
        held += evaluate(relation, table)
    return held, count


def format_number(value: float) -> str:
    """Four significant digits, without an exponent where a reader would not expect one."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.3e}"
