"""The page of a comparison: table, curves, learning rates, cost, diagnostics, every cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softgate.lab.compare.summary import COST, columns_of, diagnostics_rows, rows_of
from softgate.lab.files import write_atomic
from softgate.lab.page.html import BREAK, Markup, document, table, tag
from softgate.lab.page.index import PAGE
from softgate.lab.page.paper import environment_list, pictures
from softgate.lab.paper import Plot
from softgate.lab.plots import draw
from softgate.lab.verdicts import Rows

__all__ = ["comparison_page", "write_page"]

_VERDICTS = {"better": ("good", "✓"), "worse": ("bad", "✗"), "diverged": ("bad", "✗")}


def write_page(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the page of ``record`` into ``folder``, atomically."""
    write_atomic(folder / PAGE, comparison_page(record))
    return folder / PAGE


def comparison_page(record: Mapping[str, Any]) -> str:
    """A self-contained page; all text of ``record`` is escaped."""
    data = record["data"]
    columns, rows = diagnostics_rows(record)
    diagnostics = [tag("h2", "Diagnostics after training"), _explained(), table(columns, rows, range(1, len(columns)))]
    return document(
        f"compare {record['site']} on {data['name']} — softgate",
        tag("p", f"softgate compare · size {record['size']} · {record['steps']} steps · {record['seeds']} seed(s)",
            cls="soft"),
        tag("h1", f"{record['site']} on {data['name']}"),
        tag("p", f"{data['source']} · {_rows(data)}", cls="soft"),
        tag("h2", "Result"),
        _results(record),
        tag("ul", *[tag("li", note) for note in record["notes"]]),
        *pictures(_pictures(record)),
        tag("h2", "What a training step costs"),
        _costs(record),
        *(diagnostics if rows else []),
        tag("h2", "Every run"),
        _cells(record),
        tag("h2", "Run it yourself"),
        tag("pre", tag("code", record["command"])),
        tag("h2", "Machine and versions"),
        environment_list(record["environment"]),
    )  # fmt: skip


def _rows(data: Mapping[str, Any]) -> str:
    if data["kind"] == "text":
        return f"{data['sizes']['bytes'][0]:,} bytes"
    parts = ", ".join(f"{count:,} {part}" for part, count in data["rows"].items())
    return f"{len(data['classes'])} classes; rows: {parts}"


def _results(record: Mapping[str, Any]) -> Markup:
    columns = [*columns_of(record), "verdict"]
    marked: list[list[object]] = []
    for row in rows_of(record):
        kind, sign = _VERDICTS.get(row.verdict, ("none", "–"))
        verdict: list[object] = [tag("span", f"{sign} {row.verdict}", cls=f"verdict {kind}")]
        if row.details:
            verdict += [BREAK, tag("span", row.details, cls="soft")]
        marked.append([tag("strong", row.cells[0]), *row.cells[1:], tag("div", *verdict)])
    return table(columns, marked, range(1, len(columns) - 1))


def _costs(record: Mapping[str, Any]) -> Markup:
    rows = [[tag("strong", row.cells[0]), *row.cost] for row in rows_of(record)]
    return table(["variant", *COST], rows, range(1, 1 + len(COST)))


def _explained() -> Markup:
    return tag(
        "p",
        "Mean over seeds of softgate.diagnostics.report on the validation part: what the figures mean and what is "
        "normal stands in the documentation of softgate diagnose.",
        cls="soft",
    )


def _pictures(record: Mapping[str, Any]) -> dict[str, str]:
    """Title -> SVG."""
    metric, baseline = record["metric"], record["variants"][0]["label"]
    labels = [variant["label"] for variant in record["variants"]]
    curves: dict[str, list[Any]] = {label: [] for label in labels}
    for cell in record["cells"]:
        if cell.get("role") == "seed" and cell["status"] == "done":
            curves[cell["name"]].append(cell["figures"])
    # a variant without the figure keeps its place, and every other one its colour
    rates: dict[str, list[Any]] = {label: [] for label in labels}
    compared: dict[str, list[Any]] = {label: [] for label in labels}
    costs: dict[str, list[Any]] = {label: [] for label in labels}
    for variant in record["variants"]:
        label, found = variant["label"], variant["comparison"]
        if variant["tried"]:
            rates[label] = [{"lr": list(map(float, variant["tried"])), "tried": list(variant["tried"].values())}]
        if found["low"] is not None:
            ends = {"difference_low": found["low"], "difference_high": found["high"]}
            compared[label] = [{"difference": found["difference"], **ends}]
        if variant["cost"]["seconds"]:
            costs[label] = [{"ms": 1e3 * variant["cost"]["seconds"]}]
    title, seeds = metric["title"], record["seeds"]
    band = ", mean and range over seeds" if seeds > 1 else ""
    plots: list[tuple[Plot, Rows]] = [
        (Plot("curves", "lines", f"curve_{metric['name']}", f"Validation {title} while training{band}", "step",
              "training step", title), curves),
        (Plot("differences", "bars", "difference", f"Difference from {baseline}, 95 % interval",
              ylabel=f"difference of test {title}"), compared),
        (Plot("rates", "lines", "tried", f"Validation {title} by learning rate", "lr", "learning rate", title, log="x"),
         rates),
        (Plot("cost", "bars", "ms", "Time of a training step", ylabel="milliseconds"), costs),
    ]  # fmt: skip
    drawn = {plot.title: draw(plot, rows) for plot, rows in plots}
    return {title: svg for title, svg in drawn.items() if svg is not None}


def _cells(record: Mapping[str, Any]) -> Markup:
    name = record["metric"]["name"]
    rows: list[list[object]] = []
    for cell in record["cells"]:
        figures = cell["figures"]
        value = figures.get(f"test_{name}", figures.get(f"validation_{name}"))
        part = "test" if f"test_{name}" in figures else "validation" if value is not None else ""
        state = f"{cell['seconds']:.0f} s" if cell["status"] == "done" else cell["status"]
        error = (cell["error"] or "").strip().splitlines()[-1:]
        shown = "" if value is None else f"{value:.4f}"
        rows.append([cell["name"], cell["seed"], f"{cell['lr']:g}" if "lr" in cell else "", shown, part, state, *error]
                    + [""] * (1 - len(error)))  # fmt: skip
    header = ["run", "seed", "lr", record["metric"]["title"], "part", "time", "error"]
    return table(header, rows, range(1, 4))
