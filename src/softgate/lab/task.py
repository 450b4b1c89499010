"""One cell of a grid as plain data, and the function that measures it in the process it is called in."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import numbers
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from softgate._checks import check_device
from softgate.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    MissingExtraError,
    StateError,
    bad_value,
    check_choice,
)
from softgate.lab.cell import EVENTS, CellRun
from softgate.lab.environment import environment
from softgate.lab.files import folder_lock, write_json
from softgate.lab.interrupts import Interrupted
from softgate.lab.os_errors import explain_os_error
from softgate.lab.paper import Cell, Paper, load_paper
from softgate.lab.seeds import seed_everything

RESULT = "result.json"
ATTEMPTS = "attempts.json"
STDERR = "stderr.log"

Status = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class CellTask:
    """One cell with one seed, as plain data that any process or machine can run.

    Attributes:
        paper: slug of the paper.
        scale: name of the scale.
        cell: name of the cell.
        seed: 0, 1, ….
        folder: folder of the cell's files; no two tasks share one.
        resume: keep a finished result and continue from a checkpoint.
        threads: torch threads the cell may use.
        device: ``"cpu"`` or ``"cuda"``.
        download: data may be downloaded.
        module: importable module whose ``PAPER`` is used; empty for the papers of ``softgate.papers``.
        config: configuration of a cell that no paper lists; the function ``measure`` of ``module`` measures it.
    """

    paper: str
    scale: str
    cell: str
    seed: int
    folder: str
    resume: bool = False
    threads: int = 1
    device: str = "cpu"
    download: bool = False
    module: str = ""
    config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", os.path.abspath(self.folder))  # a worker may run in another folder
        if self.threads < 1:
            bad_value("threads", self.threads, "at least 1")
        check_choice("device", self.device, ("cpu", "cuda"))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; ``CellTask(**value)`` reads it back."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CellResult:
    """What became of one task.

    Attributes:
        task: the task.
        status: ``"done"``, ``"failed"`` or ``"interrupted"``.
        figures: what the cell measured; empty unless done.
        error: message and traceback of a cell that is not done.
        seconds: wall-clock time of the last attempt.
        attempts: how often the cell was started, counting the runs it was resumed from.
        reused: a finished result was found and nothing was measured.
        environment: the cell failed because this machine lacks something (data, a package, space, a device).
    """

    task: CellTask
    status: Status
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0
    attempts: int = 1
    reused: bool = False
    environment: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by :meth:`from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CellResult:
        """The result that ``as_dict`` wrote; null figures are the NaNs that JSON cannot hold."""
        return cls(**{**value, "task": CellTask(**value["task"]), "figures": _restore_nan(value["figures"])})


def run_task(task: CellTask) -> CellResult:
    """Measure one cell in this process; once it is done, ``result.json`` in its folder holds what it measured.

    Nothing that the measuring function raises escapes: an error gives a result with status ``"failed"``, Ctrl-C and
    :class:`softgate.lab.interrupts.Interrupted` one with status ``"interrupted"``.
    """
    started = time.monotonic()
    folder, attempts = Path(task.folder), 1
    try:
        with folder_lock(folder):
            cell = _find_cell(task)
            identity = _identity(task, cell)
            finished = _finished_result(task, identity) if task.resume else None
            if finished is not None:
                return finished
            attempts = _begin(task)
            result = CellResult(task, "done", _measure(task, cell), attempts=attempts)
            result = dataclasses.replace(result, seconds=round(time.monotonic() - started, 3))
            _write_result(result, identity)
            return result
    except BaseException as error:  # SystemExit too: a cell that calls sys.exit() must not end the grid
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt | Interrupted) else "failed"
        seconds = round(time.monotonic() - started, 3)
        text = _describe(error)
        if isinstance(error, OSError) and error.errno is not None:
            text += "\n" + explain_os_error(error, folder)
        lacks = isinstance(error, StateError | MissingExtraError | OSError)
        return CellResult(task, status, error=text, seconds=seconds, attempts=attempts, environment=lacks)


def follow_task(task: CellTask) -> None:
    """Take part in a measurement that several processes make together, while one of them runs :func:`run_task`."""
    _measure(task, _find_cell(task))


def is_finished(task: CellTask) -> bool:
    """Whether ``run_task`` would take an earlier result instead of measuring."""
    return task.resume and _finished_result(task, _identity(task, _find_cell(task))) is not None


def _find_cell(task: CellTask) -> Cell:
    """The cell with the function that measures it."""
    if task.config is not None:
        return Cell(task.cell, task.config, importlib.import_module(task.module).measure)
    paper: Paper = importlib.import_module(task.module).PAPER if task.module else load_paper(task.paper)
    for cell in paper.scale(task.scale).cells:
        if cell.name == task.cell:
            return dataclasses.replace(cell, measure=cell.measure or paper.measure)
    names = ", ".join(cell.name for cell in paper.scale(task.scale).cells)
    raise ArgumentValueError(f"cell must be one of {names} for {task.paper} at scale {task.scale}, got {task.cell!r}")


def _identity(task: CellTask, cell: Cell) -> dict[str, Any]:
    """What must agree before a finished result may stand for a new measurement, as JSON would give it back."""
    named = {"paper": task.paper, "scale": task.scale, "cell": task.cell, "seed": task.seed, "device": task.device}
    return {**named, "config": json.loads(json.dumps(dict(cell.config)))}


def _finished_result(task: CellTask, identity: Mapping[str, Any]) -> CellResult | None:
    """The result of an earlier run of the same measurement; an unreadable or different one counts as none."""
    try:
        record = json.loads((Path(task.folder) / RESULT).read_text(encoding="utf-8"))
        if record["identity"] != identity:
            return None
        figures = checked_figures(_restore_nan(record["figures"]))
        return CellResult(task, "done", figures, "", float(record["seconds"]), int(record["attempts"]), reused=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _begin(task: CellTask) -> int:
    """Clear what an earlier run left, unless it is resumed; count the attempt."""
    folder, earlier = Path(task.folder), 0
    if task.resume:
        with suppress(OSError, ValueError, KeyError, TypeError):
            earlier = int(json.loads((folder / ATTEMPTS).read_text(encoding="utf-8"))["attempts"])
    else:
        (folder / EVENTS).unlink(missing_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.truncate(folder / STDERR, 0)  # not removed: this process may be writing to it
    write_json(folder / ATTEMPTS, {"attempts": earlier + 1})
    return earlier + 1


def _measure(task: CellTask, cell: Cell) -> dict[str, Any]:
    assert cell.measure is not None  # held by _find_cell
    check_device(task.device)
    run = CellRun(
        paper=task.paper,
        scale=task.scale,
        cell=task.cell,
        config=cell.config,
        seed=task.seed,
        folder=Path(task.folder),
        resume=task.resume,
        threads=task.threads,
        device=task.device,
        download=task.download,
    )
    with _threads_and_seeds(task):
        return checked_figures(cell.measure(run))


@contextmanager
def _threads_and_seeds(task: CellTask) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    seed_everything(task.seed)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checked_figures(figures: Any) -> dict[str, Any]:
    """Return ``figures`` as plain numbers and (nested) lists of numbers, or say which one is something else.

    NaN is allowed (a run that diverged has no figure); an infinity is not, because JSON and plots cannot hold it.
    """
    if not isinstance(figures, Mapping) or not figures:
        raise ArgumentTypeError(f"the measuring function must return a mapping of figures, got {figures!r:.200}")
    return {str(name): _plain(str(name), figure) for name, figure in figures.items()}


def _plain(name: str, figure: Any) -> Any:
    if hasattr(figure, "tolist"):  # a NumPy or torch array, or one of their scalars
        figure = figure.tolist()
    if isinstance(figure, list | tuple):
        return [_plain(name, item) for item in figure]
    if not isinstance(figure, numbers.Real):
        raise ArgumentTypeError(f"figure {name!r} must be a number or a list of numbers, got {figure!r:.200}")
    if isinstance(figure, numbers.Integral):
        return int(figure)
    value = float(figure)
    if math.isinf(value):
        raise ArgumentValueError(f"figure {name!r} must be finite or NaN, got {value}")
    return value


def _restore_nan(figure: Any) -> Any:
    if isinstance(figure, dict):
        return {name: _restore_nan(item) for name, item in figure.items()}
    if isinstance(figure, list):
        return [_restore_nan(item) for item in figure]
    return math.nan if figure is None else figure


def _write_result(result: CellResult, identity: Mapping[str, Any]) -> None:
    record = {
        "identity": identity,
        "figures": result.figures,
        "seconds": result.seconds,
        "attempts": result.attempts,
        "environment": environment(),
    }
    write_json(Path(result.task.folder) / RESULT, record)


def _describe(error: BaseException) -> str:
    """Message and traceback, with file names relative to the import path: records travel to other machines."""
    text = "".join(traceback.format_exception(error)).rstrip()
    for entry in sorted((os.path.abspath(entry) for entry in sys.path), key=len, reverse=True):
        text = text.replace(entry + os.sep, "") if entry != os.sep else text
    return text
