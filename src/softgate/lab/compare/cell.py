"""What one cell of a comparison measures; the grid imports this module in every worker."""

from __future__ import annotations

from typing import Any

from softgate.errors import StateError
from softgate.lab.cell import CellRun
from softgate.lab.compare.cost import measure_cost
from softgate.lab.compare.dataset import Dataset
from softgate.lab.compare.training import train

__all__ = ["measure"]


def measure(run: CellRun) -> dict[str, Any]:
    """Train a variant (roles ``"tuning"`` and ``"seed"``), or measure what a step of each costs (``"cost"``)."""
    data = Dataset.load(run.folder.parent.parent)
    if data.digest != run.config["data"]:
        raise StateError("the data in the folder of the comparison is not that of this run; start it anew")
    return measure_cost(run, data) if run.config["role"] == "cost" else train(run, data)
