"""The table that a comparison ends with, as texts that terminal and page share, and the terminal's form of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softgate.lab.page import PAGE
from softgate.lab.verdicts import format_number

__all__ = ["COST", "Row", "columns_of", "diagnostics_rows", "print_comparison", "rows_of"]

#: Headings of what a step costs.
COST = ("ms/step", "MB/step", "parameters")
_STYLE = {"better": "bold green", "worse": "bold red", "diverged": "bold red", "baseline": "dim"}


@dataclass(frozen=True)
class Row:
    """One variant as texts.

    Attributes:
        cells: under the columns of :func:`columns_of`.
        cost: under the columns of :data:`COST`.
        verdict: one of those of ``significance.Comparison``.
        details: interval of the difference and what the verdict rests on; empty for the baseline.
    """

    cells: list[str]
    cost: list[str]
    verdict: str
    details: str


def columns_of(record: Mapping[str, Any]) -> list[str]:
    """Headings of the results."""
    arrow = "↓" if record["metric"]["better"] == "lower" else "↑"
    title = f"{record['metric']['title'].replace(' per ', '/')} {arrow}"
    return ["variant", "lr", title, "difference", *(["log loss"] if _has_log_loss(record) else [])]


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """One row per variant."""
    return [_row(record, variant) for variant in record["variants"]]


def _row(record: Mapping[str, Any], variant: Mapping[str, Any]) -> Row:
    found, cost = variant["comparison"], variant["cost"]
    edge = {"lowest": "≤", "highest": "≥"}.get(variant["lr_edge"], "")
    cells = [variant["label"], f"{edge}{variant['lr']:g}", _with_spread(variant)]
    cells.append("" if found["difference"] is None else f"{found['difference']:+.4f}")
    if _has_log_loss(record):
        cells.append(_number(variant["test"].get("test_log_loss")))
    seconds, size = cost["seconds"], cost["bytes"]
    costs = [
        "" if seconds is None else f"{1e3 * seconds:.3g} ({cost['ratio']:.2f}×)",
        "" if size is None else f"{size / 1e6:.3g}",
        _parameters(record, variant),
    ]
    return Row(cells, costs, found["verdict"], _details(record, variant))


def _has_log_loss(record: Mapping[str, Any]) -> bool:
    return any("test_log_loss" in variant["test"] for variant in record["variants"])


def _with_spread(variant: Mapping[str, Any]) -> str:
    mean, spread = variant["mean"], variant["spread"]
    if mean is None or not math.isfinite(mean):
        return "NaN"
    return f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _parameters(record: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    """The number of the baseline, and what the others have more."""
    own, baseline = variant["parameters"], record["variants"][0]["parameters"]
    if own is None:
        return ""
    return f"{own:,.0f}" if variant is record["variants"][0] or baseline is None else f"{own - baseline:+,.0f}"


def _details(record: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    found, baseline = variant["comparison"], record["variants"][0]["label"]
    interval = ""
    if found["low"] is not None:
        interval = (
            f"{found['difference']:+.4f} from {baseline}, 95 % interval {found['low']:+.4f} to {found['high']:+.4f}; "
        )
    return interval + found["reason"]


def _number(value: float | None) -> str:
    return "" if value is None else format_number(value)


def diagnostics_rows(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings (the variants) and one row per figure that ``softgate.diagnostics.report`` gave after training."""
    variants = record["variants"]
    names = list(dict.fromkeys(name for variant in variants for name in variant["diagnostics"]))
    rows = [
        [name.replace("_", " "), *(_number(variant["diagnostics"].get(name)) for variant in variants)] for name in names
    ]
    return ["", *(variant["label"] for variant in variants)], rows


def print_comparison(console: Console, record: Mapping[str, Any], folder: Path) -> None:
    """Print the table, the verdicts' reasons, the diagnostics, the notes, and where everything lies."""
    where = f"{record['data']['name']} · size {record['size']} · {record['steps']} steps · {record['seeds']} seed(s)"
    console.print(Text(f"compare {record['site']} on {where}", style="bold"))
    rows = rows_of(record)
    console.print(
        _table(
            [*columns_of(record), "verdict"],
            [[*row.cells, Text(row.verdict, style=_STYLE.get(row.verdict, ""))] for row in rows],
        )
    )
    for row in rows:
        if row.details:
            console.print(Text(f"{row.cells[0]}: ", style="bold").append(row.details, style="not bold"))
    console.print(Text("\ncost of a training step", style="bold"))
    console.print(_table(["variant", *COST], [[row.cells[0], *row.cost] for row in rows]))
    names, seen = diagnostics_rows(record)
    if seen:
        console.print(Text("\ndiagnostics after training, mean over seeds", style="bold"))
        console.print(_table(names, seen))
    console.print()
    for note in record["notes"]:
        console.print(Text(note, style="dim"))
    for cell in record["cells"]:
        if cell["status"] != "done":
            reason = (cell["error"] or "no reason given").strip().splitlines()[-1]
            console.print(Text(f"{cell['name']} seed {cell['seed']} {cell['status']}: {reason}", style="red"))
    console.print(Text(f"{record['seconds']:.0f} s · page: {folder / PAGE}"), highlight=False)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(columns):
        side: Literal["left", "right"] = "left" if index == 0 or name == "verdict" else "right"
        table.add_column(Text(name), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table
