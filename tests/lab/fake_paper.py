"""A paper small enough to reproduce in a test; its cells can be told to misbehave."""

from __future__ import annotations

import os
import time

from softgate.lab.cell import CellRun
from softgate.lab.paper import Cell, Claim, Figures, Paper, Plot, Scale


def measure(run: CellRun) -> Figures:
    """Figures that are known in advance."""
    for step in range(3):
        run.log(step + 1, 3, loss=1.0 / (step + 1))
    if run.config.get("fail"):
        raise ValueError("<script>alert('cell')</script>")
    if run.config.get("crash"):
        os._exit(7)
    if run.config.get("wait"):
        time.sleep(60)
    value = float(run.config["value"]) + 0.1 * run.seed
    return {"value": value, "curve": [value, 2 * value, 3 * value], "map": [[0.0, value], [value, 1.0]]}


CELLS = (Cell("low", {"value": 1.0}), Cell("high", {"value": 5.0}))

PAPER = Paper(
    slug="fake-paper",
    title="A <b>fake</b> paper",
    arxiv="0000.00000",
    date="2026-01",
    summary="Made for tests & nothing else.",
    claims=(
        Claim("order", "Low is below high", "1 < 5", "Table 1", 'value["low"] < value["high"]'),
        Claim("scale", "Needs more machines", "9", "Table 2", 'value["huge"] > 1', scales=("paper",)),
    ),
    scales={
        "smoke": Scale(CELLS, seeds=2),
        "laptop": Scale((*CELLS, Cell("broken", {"fail": True}), Cell("crashing", {"crash": True})), seeds=1),
        "paper": Scale((Cell("slow", {"value": 1.0, "wait": True}),), hardware="patience"),
    },
    measure=measure,
    plots=(
        Plot("curve", "lines", "curve", "A curve", xlabel="step", ylabel="value"),
        Plot("value", "bars", "value", "A bar", reference={"paper": 1.0}),
        Plot("map", "heatmaps", "map", "A map"),
        Plot("absent", "lines", "absent", "Nothing to draw"),
    ),
)
