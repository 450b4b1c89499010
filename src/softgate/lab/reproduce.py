"""Run one paper at one scale: every cell and seed, then verdicts, pictures, ``results.json`` and the page."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from softgate._checks import check_device
from softgate.errors import ArgumentValueError, StateError
from softgate.lab.environment import environment
from softgate.lab.files import folder_lock, write_atomic, write_json
from softgate.lab.grid import CellResult, CellState, CellTask, run_grid
from softgate.lab.os_errors import explain_os_error
from softgate.lab.page import PAGE, RESULTS, paper_page
from softgate.lab.paper import Cell, Paper, Scale, load_paper
from softgate.lab.plots import draw
from softgate.lab.verdicts import Judgement, judge


@dataclass(frozen=True)
class Outcome:
    """What a reproduction left behind.

    Attributes:
        paper: the paper that was measured.
        folder: where ``results.json``, the page, the pictures and the cells' own files are.
        results: content of ``results.json``.
        judgements: one per claim.
        interrupted: stopped by a signal before every cell was done; ``resume=True`` continues.
        environment: a cell failed because this machine lacks something (data, a package, space, a device).
        resume_command: what to type to continue, finished cells kept.
    """

    paper: Paper
    folder: Path
    results: dict[str, Any]
    judgements: tuple[Judgement, ...]
    interrupted: bool
    environment: bool = False
    resume_command: str = ""

    @property
    def exit_code(self) -> int:
        """0 every claim that can be measured here held, 1 one did not (or a cell failed), 3 machine, 130 stopped."""
        if self.interrupted:
            return 130
        if self.environment:
            return 3
        missed = {"reproduced in direction", "not reproduced"} & {j.verdict for j in self.judgements}
        failed = any(cell["status"] != "done" for cell in self.results["cells"])
        return 1 if missed or failed else 0


def cell_folder(out: str | Path, slug: str, scale: str, cell: str, seed: int) -> Path:
    """Where a cell's own files are, below the folder that receives all reproductions."""
    return Path(out) / slug / scale / "cells" / f"{cell}-s{seed}"


def reproduce(
    slug: str,
    *,
    scale: str = "laptop",
    seeds: int | None = None,
    resume: bool = False,
    out: Path = Path("runs"),
    on: Literal["local", "ray"] = "local",
    workers: int | None = None,
    device: str = "cpu",
    download: bool = False,
    module: str = "",
    poll: Callable[[Sequence[CellState]], None] | None = None,
) -> Outcome:
    """Measure the claims of paper ``slug``.

    Args:
        slug: name of the paper, see ``softgate.lab.paper.paper_slugs``.
        scale: ``smoke``, ``laptop`` or ``paper``.
        seeds: number of seeds; the scale's own by default.
        resume: keep finished cells and continue unfinished ones from their checkpoints.
        out: folder that receives ``SLUG/SCALE/``.
        on: ``local`` processes or a ``ray`` cluster.
        workers: cells at a time; one per core by default, one where cells measure time.
        device: where the cells compute.
        download: missing data sets may be downloaded.
        module: importable module whose ``PAPER`` is measured instead of one of softgate's (a paper of your own).
        poll: called a few times a second with the state of all cells.

    Returns:
        The outcome; all of it is in ``folder`` too.

    Raises:
        ArgumentValueError: unknown paper or scale, or a bad count.
        StateError: another run uses the folder, there is no such device, or the results cannot be written.
    """
    paper = load_paper(slug, module)
    plan = paper.scale(scale)
    _check_request(seeds, workers, device)
    folder = Path(out) / slug / scale
    cores = len(os.sched_getaffinity(0))
    width = 1 if plan.exclusive else (workers or cores)
    with folder_lock(folder):
        if not resume:
            shutil.rmtree(folder / "cells", ignore_errors=True)
        load = os.getloadavg()[0]
        tasks = [
            CellTask(
                slug,
                scale,
                cell.name,
                seed,
                str(cell_folder(out, slug, scale, cell.name, seed)),
                resume=resume,
                threads=max(1, cores // width),
                device=device,
                download=download,
                module=module,
            )
            for cell, seed in _grid(plan, seeds)
        ]
        started = time.monotonic()
        done = run_grid(tasks, workers=width, on=on, poll=poll)
        kept = sum(result.seconds for result in done if result.reused)  # measured by the run that is resumed
        command = f"softgate reproduce {slug} --scale {scale}" + (f" --seeds {seeds}" if seeds else "")
        record = {
            "command": command,
            "seconds": round(time.monotonic() - started + kept / width, 1),
            "environment": {
                **environment(),
                "load_average_before": round(load, 2),
                "workers": width,
                "threads_per_cell": tasks[0].threads,
            },
        }
        options = {"out": str(out), "on": on, "workers": workers, "device": device}
        again = _resume_command(command, options, download=download)
        outcome = replace(_judge(paper, scale, folder, done, loaded=load > cores, record=record), resume_command=again)
        if not outcome.interrupted:
            _write_or_say(outcome)
    return outcome


def _check_request(seeds: int | None, workers: int | None, device: str) -> None:
    """Fail before anything is removed or started."""
    for name, count in (("seeds", seeds), ("workers", workers)):
        if count is not None and count < 1:
            raise ArgumentValueError(f"{name} must be at least 1, got {count}")
    check_device(device)


def _resume_command(command: str, options: Mapping[str, Any], *, download: bool) -> str:
    """``command`` with the options that are not the defaults, and ``--resume``."""
    defaults = {"out": "runs", "on": "local", "workers": None, "device": "cpu"}
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value != defaults[name]]
    return " ".join([command, *given, *(["--download"] if download else []), "--resume"])


def _grid(plan: Scale, seeds: int | None) -> list[tuple[Cell, int]]:
    """Cells outside, seeds inside: the first pictures of every variant appear early."""
    counts = {cell.name: cell.seeds or seeds or plan.seeds for cell in plan.cells}
    return [(c, s) for s in range(max(counts.values())) for c in plan.cells if s < counts[c.name]]


def _judge(
    paper: Paper,
    scale: str,
    folder: Path,
    done: Sequence[CellResult],
    *,
    loaded: bool,
    record: dict[str, Any],
) -> Outcome:
    plan = paper.scale(scale)
    order = {cell.name: index for index, cell in enumerate(plan.cells)}
    done = sorted(done, key=lambda result: (order[result.task.cell], result.task.seed))
    rows: dict[str, list[Any]] = {}
    for result in done:
        if result.status == "done":
            rows.setdefault(result.task.cell, []).append(result.figures)
    judgements = tuple(judge(claim, scale, plan, rows, loaded=loaded) for claim in paper.claims)
    results = {
        "format": 1,
        "paper": {
            key: getattr(paper, key) for key in ("slug", "title", "arxiv", "date", "venue", "summary", "code", "notes")
        },
        "scale": scale,
        **record,
        "notes": [note for note in (plan.note,) if note],
        "claims": [_claim_record(paper, judgement) for judgement in judgements],
        "cells": [
            {
                "name": r.task.cell,
                "seed": r.task.seed,
                "status": r.status,
                "seconds": r.seconds,
                "config": dict(_config(plan, r.task.cell)),
                "figures": dict(r.figures or {}),
                "error": r.error,
            }
            for r in done
        ],
    }
    interrupted = any(result.status == "interrupted" for result in done)
    lacks = any(result.status == "failed" and result.environment for result in done)
    return Outcome(paper, folder, results, judgements, interrupted, lacks)


def _config(plan: Scale, name: str) -> Any:
    return next(cell.config for cell in plan.cells if cell.name == name)


def _claim_record(paper: Paper, judgement: Judgement) -> dict[str, Any]:
    claim = next(claim for claim in paper.claims if claim.id == judgement.id)
    static = {key: getattr(claim, key) for key in ("id", "statement", "paper_figure", "source", "note", "timing")}
    return {**static, **asdict(judgement)}


def _write_or_say(outcome: Outcome) -> None:
    """Write everything, or say that the cells' own files are there and how to go on once there is space."""
    try:
        _write(outcome)
    except OSError as error:
        kept = f"finished cells are kept, continue with: {outcome.resume_command}"
        raise StateError(f"{explain_os_error(error, outcome.folder)}; {kept}") from error


def _write(outcome: Outcome) -> None:
    """Pictures, results and page; results.json last but one, so that it never points to missing pictures."""
    rows: dict[str, list[Any]] = {}
    for cell in outcome.results["cells"]:
        if cell["status"] == "done":
            rows.setdefault(cell["name"], []).append(cell["figures"])
    drawn: dict[str, str] = {}
    for plot in outcome.paper.plots:
        svg = draw(plot, rows)
        if svg is not None:
            drawn[plot.title] = svg
            write_atomic(outcome.folder / f"{plot.name}.svg", svg + "\n")
    write_json(outcome.folder / RESULTS, outcome.results)
    write_atomic(outcome.folder / PAGE, paper_page(outcome.results, drawn))
