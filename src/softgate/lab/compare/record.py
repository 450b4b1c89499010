"""Everything a comparison found, as the JSON record that table and page are made from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from softgate.lab.compare.dataset import TEST
from softgate.lab.compare.plan import Plan, figure_or_nan
from softgate.lab.compare.significance import Comparison, compare_with_baseline
from softgate.lab.compare.training import DIAGNOSIS
from softgate.lab.compare.tuning import Rate
from softgate.lab.grid import CellResult
from softgate.lab.verdicts import mean_table

__all__ = ["build_record"]


def build_record(
    plan: Plan,
    rates: Mapping[str, Rate],
    tried: Sequence[CellResult],
    trained: Sequence[CellResult],
    cost: CellResult,
    **about: Any,
) -> dict[str, Any]:
    """The record.

    Args:
        plan: what was to be run.
        rates: learning rate of every variant.
        tried: cells that tried learning rates.
        trained: cells of the table.
        cost: the cell that measured time and memory.
        **about: ``command``, ``seconds``, ``environment``.
    """
    cells = {variant.label: [r for r in trained if r.task.cell == variant.label] for variant in plan.variants}
    name = f"test_{plan.metric.name}"
    values = {label: [figure_or_nan(r.figures, name) for r in results] for label, results in cells.items()}
    verdicts = compare_with_baseline(values, better=plan.metric.better, resolution=_resolution(plan))
    rows = [
        {
            "label": variant.label,
            "name": variant.name,
            "options": variant.options,
            "lr": rates[variant.label].lr,
            "lr_edge": rates[variant.label].edge,
            "tried": {f"{lr:g}": value for lr, value in rates[variant.label].tried.items()},
            "values": values[variant.label],
            "mean": _mean(values[variant.label]),
            "spread": _spread(values[variant.label]),
            **_means(cells[variant.label]),
            "comparison": asdict(verdicts[variant.label]),
            "cost": _cost(cost, variant.label),
        }
        for variant in plan.variants
    ]
    return {
        "format": 1,
        "site": plan.site,
        "data": plan.data.described(),
        "size": plan.size,
        "steps": plan.steps,
        "batch": plan.sizes.batch,
        "seeds": plan.seeds,
        "lr_grid": list(plan.grid),
        "metric": asdict(plan.metric),
        "variants": rows,
        "notes": _notes(plan, rates, verdicts, cost),
        **about,
        "cells": [_cell(result) for result in (*tried, *trained, cost)],
    }


def _resolution(plan: Plan) -> float:
    """Smallest step of an accuracy: one row (or byte) of the test part."""
    if plan.metric.name != "accuracy":
        return 0.0
    if plan.data.kind == "text":
        return 1.0 / (plan.sizes.tested * plan.sizes.model["length"])
    return 1.0 / _tested(plan)


def _tested(plan: Plan) -> int:
    """Rows that the test part is measured on."""
    return min(plan.sizes.tested, int((plan.data.arrays["part"] == TEST).sum()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _means(results: Sequence[CellResult]) -> dict[str, Any]:
    """Means over seeds of the other figures of the test part and of the diagnostics."""
    done = [result.figures for result in results if result.status == "done"]
    means = mean_table({"": done}).get("", {})
    diagnosis = {name.removeprefix(DIAGNOSIS): value for name, value in means.items() if name.startswith(DIAGNOSIS)}
    others = {name: value for name, value in means.items() if name.startswith("test_")}
    return {"test": others, "diagnostics": diagnosis, "parameters": means.get("parameters")}


def _cost(cost: CellResult, label: str) -> dict[str, float | None]:
    return {name: cost.figures.get(f"{name}:{label}") for name in ("seconds", "fastest", "ratio", "bytes")}


def _cell(result: CellResult) -> dict[str, Any]:
    config = {key: value for key, value in (result.task.config or {}).items() if key in ("role", "variant", "lr")}
    return {
        "name": result.task.cell,
        "seed": result.task.seed,
        "status": result.status,
        "seconds": result.seconds,
        **config,
        "figures": dict(result.figures),
        "error": result.error,
    }


def _notes(plan: Plan, rates: Mapping[str, Rate], verdicts: Mapping[str, Comparison], cost: CellResult) -> list[str]:
    """What a reader must know beside the table, the important things first."""
    baseline, count = plan.variants[0].label, len(plan.variants) - 1
    notes = []
    if plan.seeds == 1:
        notes.append("One seed: the table cannot say whether a difference is more than chance (--seeds 3 or more).")
    else:
        notes.append(
            f"Verdicts: paired t-test over {plan.seeds} seeds against {baseline}, level 5 % over all {count} "
            "comparison(s) together (Holm). Intervals are 95 %, each for its comparison alone. Seeds change the "
            "start and the order of the data; they say nothing about other data, sizes or lengths of training."
        )
    notes += [_edge(plan, edge, rates) for edge in ("lowest", "highest") if any(r.edge == edge for r in rates.values())]
    notes += [f"{label}: {v.reason}." for label, v in verdicts.items() if v.verdict == "diverged"]
    tuned = "One learning rate for all, not tuned."
    if len(plan.grid) > 1:
        grid = ", ".join(f"{rate:g}" for rate in plan.grid)
        tuned = f"Learning rates {grid}, tried by every variant with a seed of their own on the validation part."
    notes.append(
        f"The same for all: {plan.steps} updates of {plan.sizes.batch} rows, the same rows in the same order, the same "
        f"start of all parameters that the variants share, AdamW. {tuned} The table is of a test part that neither has "
        "seen."
    )
    if cost.status == "done":
        notes.append(
            f"A step is forward, backward and update, timed in turns in one process with {cost.task.threads} "
            "thread(s), median; memory is the peak of what it allocates above weights and optimizer state."
        )
    if plan.data.kind != "text":
        rows = _tested(plan)
        notes.append(f"The test part has {rows:,} rows: an accuracy moves in steps of {1 / rows:.2g}.")
    return [*notes, *plan.data.notes]


def _edge(plan: Plan, edge: str, rates: Mapping[str, Rate]) -> str:
    labels = ", ".join(label for label, rate in rates.items() if rate.edge == edge)
    end, beyond = (plan.grid[0], plan.grid[0] / 3) if edge == "lowest" else (plan.grid[-1], plan.grid[-1] * 3)
    wider = ",".join(f"{rate:.2g}" for rate in sorted({*plan.grid, beyond}))
    return (
        f"{labels}: the best learning rate, {end:g}, is the {edge} tried; a better one may lie beyond "
        f"(--lr-grid {wider} --resume adds it)."
    )
