"""Run a comparison: learning rates, then seeds, then cost; afterwards the record and the page."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from softgate.errors import bad_value, check_choice
from softgate.lab.compare.page import write_page
from softgate.lab.compare.plan import Plan, Running, check_folder, figure_or_nan, prepare_folder
from softgate.lab.compare.record import build_record
from softgate.lab.compare.tuning import Rate, choose_rate
from softgate.lab.environment import environment, usable_cores
from softgate.lab.files import folder_lock, write_json
from softgate.lab.grid import CellResult, CellState, CellTask, run_grid

__all__ = ["RECORD", "Outcome", "compare"]

RECORD = "compare.json"
Poll = Callable[[Sequence[CellState]], None]


@dataclass(frozen=True)
class Outcome:
    """What a comparison left behind.

    Attributes:
        folder: where record, page and the cells' own files are.
        record: content of ``compare.json``; empty if interrupted.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def interrupted(self) -> bool:
        """Stopped by a signal before every cell was done; ``resume=True`` continues."""
        return not self.record

    @property
    def exit_code(self) -> int:
        """0 done, 1 a cell failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return int(any(cell["status"] != "done" for cell in self.record["cells"]))


def compare(
    plan: Plan,
    folder: Path,
    *,
    resume: bool = False,
    on: Literal["local", "ray"] = "local",
    workers: int | None = None,
    device: str = "cpu",
    command: str = "",
    poll: Poll | None = None,
) -> Outcome:
    """Train every variant of ``plan`` and judge it against the first.

    Args:
        plan: from :func:`softgate.lab.compare.plan.make_plan`.
        folder: receives ``compare.json``, ``index.html`` and the cells' own files.
        resume: keep what an interrupted run has finished; variants, seeds and learning rates may be added.
        on: ``local`` processes or a ``ray`` cluster, all of whose workers must see ``folder``.
        workers: cells at a time; one per core by default.
        device: where cells compute.
        command: what the record says was typed.
        poll: called a few times a second with the state of the cells that run together.

    Returns:
        The outcome; all of it is in ``folder`` too.

    Raises:
        ArgumentValueError: a bad count, or a folder that holds something else.
        StateError: another run uses the folder.
    """
    check_choice("device", device, ("cpu", "cuda"))
    if workers is not None and workers < 1:
        bad_value("--workers", workers, "at least 1")
    folder, cores = Path(folder), usable_cores()
    width = workers or cores
    load, started = os.getloadavg()[0], time.monotonic()
    check_folder(folder)
    with folder_lock(folder):
        prepare_folder(plan, folder, resume)
        running = Running(folder, resume, max(1, cores // width), device)

        def run(tasks: Sequence[CellTask], width: int = width) -> list[CellResult]:
            return run_grid(tasks, workers=width, on=on, poll=poll)

        tried = run(list(running.tuning(plan))) if len(plan.grid) > 1 else []
        if _interrupted(tried):
            return Outcome(folder, {})
        rates = _rates(plan, tried)
        trained = run(list(running.seeds(plan, {label: rate.lr for label, rate in rates.items()})))
        cost = [] if _interrupted(trained) else run([running.cost(plan)], 1)
        if not cost or _interrupted(cost):
            return Outcome(folder, {})
        kept = math.fsum(r.seconds for r in (*tried, *trained, *cost) if r.reused)  # measured by the run before
        about = {**environment(), "load_average_before": round(load, 2), "workers": width,
                 "threads_per_cell": running.threads}  # fmt: skip
        seconds = round(time.monotonic() - started + kept / width, 1)
        record = build_record(plan, rates, tried, trained, cost[0], command=command, seconds=seconds,
                              environment=about)  # fmt: skip
        write_json(folder / RECORD, record)
        write_page(folder, record)
    return Outcome(folder, record)


def _interrupted(results: Sequence[CellResult]) -> bool:
    return any(result.status == "interrupted" for result in results)


def _rates(plan: Plan, tried: Sequence[CellResult]) -> dict[str, Rate]:
    """The learning rate of every variant; the only one there is, where there is one."""
    if not tried:
        return {variant.label: Rate(plan.grid[0], {}) for variant in plan.variants}
    found: dict[str, dict[float, float]] = {variant.label: {} for variant in plan.variants}
    for result in tried:
        config = result.task.config or {}
        value = figure_or_nan(result.figures, f"validation_{plan.metric.name}")
        found[config["variant"]["label"]][config["lr"]] = value
    return {label: choose_rate(figures, plan.metric.better) for label, figures in found.items()}
