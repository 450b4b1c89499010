"""The grid executor: every cell of a reproduction in a process of its own, on this machine or on a Ray cluster.

One cell that raises, crashes or is killed never takes the others with it; a finished cell leaves
``result.json`` in its folder and is not measured again when the grid is resumed.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from softgate.errors import ArgumentValueError, bad_value, check_choice
from softgate.lab.cell import EVENTS
from softgate.lab.task import CellResult as CellResult
from softgate.lab.task import CellTask as CellTask
from softgate.lab.task import Status
from softgate.lab.task import run_task as run_task

#: How long an interrupted cell may take to write its checkpoint before it is killed, in seconds.
GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.2


@dataclass
class CellState:
    """The state of one cell while the grid runs, as the progress display sees it.

    Attributes:
        task: the task.
        status: ``"waiting"``, ``"running"`` or the final status.
        event: newest line of the cell's ``events.jsonl``, None before the first.
        seconds: since the cell was started.
        error: message and traceback once the cell has failed.
    """

    task: CellTask
    status: Literal["waiting", "running"] | Status = "waiting"
    event: dict[str, Any] | None = None
    seconds: float = 0.0
    error: str = ""


class RunningCell(Protocol):
    """A started cell, whatever runs it."""

    def result(self) -> CellResult | None:
        """The result once there is one, None while the cell runs."""

    def interrupt(self) -> None:
        """Ask the cell to write its checkpoint and stop."""

    def kill(self) -> None:
        """Stop the cell at once."""


class BackEnd(Protocol):
    """Starts cells and waits for them."""

    def start(self, task: CellTask) -> RunningCell:
        """Start one cell."""

    def wait(self, cells: Sequence[RunningCell], seconds: float) -> None:
        """Return when one of ``cells`` may have ended, at the latest after ``seconds``."""

    def close(self) -> None:
        """Give back what the back end holds."""


def run_grid(
    tasks: Sequence[CellTask],
    *,
    workers: int,
    on: Literal["local", "ray"] = "local",
    poll: Callable[[Sequence[CellState]], None] | None = None,
) -> list[CellResult]:
    """Run all tasks, at most ``workers`` at once, and return their results in the same order.

    Args:
        tasks: the cells; no two may share a folder.
        workers: how many cells run at the same time.
        on: ``"local"`` gives each cell a process of its own; ``"ray"`` a Ray task with ``num_cpus=task.threads``, on
            the cluster that ``RAY_ADDRESS`` names or on one started on this machine.
        poll: called about five times a second with the state of all cells, in the order of ``tasks``.

    Returns:
        One result per task. After Ctrl-C or SIGTERM, cells get five seconds to write their checkpoints, and those that
        did not finish have status ``"interrupted"``; a second signal kills them at once.

    Raises:
        MissingExtraError: ``on="ray"`` and Ray is not installed.
    """
    check_choice("on", on, ("local", "ray"))
    if not isinstance(workers, int) or workers < 1:
        bad_value("workers", workers, "an integer of at least 1")
    folders = [task.folder for task in tasks]
    if len(set(folders)) != len(folders):
        raise ArgumentValueError("tasks must have folders of their own; two of them share one")
    if not tasks:
        return []
    back_end = _back_end(on, tasks, workers)
    try:
        return _Grid(tasks, workers, back_end, poll).run()
    finally:
        back_end.close()


def _back_end(on: str, tasks: Sequence[CellTask], workers: int) -> BackEnd:
    if on == "ray":
        from softgate.lab.ray_grid import RayBackEnd

        return RayBackEnd(cpus=workers * max(task.threads for task in tasks))
    from softgate.lab.local_grid import LocalBackEnd

    return LocalBackEnd()


class _Grid:
    """The loop that both back ends share: start, watch, collect, and on a signal stop."""

    def __init__(self, tasks: Sequence[CellTask], workers: int, back_end: BackEnd,
                 poll: Callable[[Sequence[CellState]], None] | None) -> None:  # fmt: skip
        self.states = [CellState(task) for task in tasks]
        self.tails = [EventTail(Path(task.folder) / EVENTS) for task in tasks]
        self.results: dict[int, CellResult] = {}
        self.running: dict[int, tuple[RunningCell, float]] = {}
        self.workers, self.back_end, self.poll = workers, back_end, poll

    def run(self) -> list[CellResult]:
        with _caught_signals() as signals:
            try:
                while len(self.results) < len(self.states):
                    if signals:
                        self._stop(signals)
                        break
                    self._start_more()
                    self.back_end.wait([cell for cell, _ in self.running.values()], _POLL_SECONDS)
                    self._collect()
                    self._report()
            finally:
                for cell, _ in self.running.values():
                    cell.kill()
            self._report()
        return [self.results[index] for index in range(len(self.states))]

    def _start_more(self) -> None:
        for index, state in enumerate(self.states):
            if len(self.running) >= self.workers:
                return
            if state.status == "waiting":
                self.running[index] = (self.back_end.start(state.task), time.monotonic())
                state.status = "running"

    def _collect(self) -> None:
        for index, (cell, _) in list(self.running.items()):
            result = cell.result()
            if result is not None:
                del self.running[index]
                self._finish(index, result)

    def _finish(self, index: int, result: CellResult) -> None:
        self.results[index] = result
        state = self.states[index]
        state.status, state.seconds, state.error = result.status, result.seconds, result.error

    def _report(self) -> None:
        for index, state in enumerate(self.states):
            if state.status == "running":
                state.seconds = time.monotonic() - self.running[index][1]
            if state.status != "waiting":
                state.event = self.tails[index].newest()
        if self.poll is not None:
            self.poll(self.states)

    def _stop(self, signals: list[int]) -> None:
        name = signal.Signals(signals[0]).name
        for cell, _ in self.running.values():
            cell.interrupt()
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running and time.monotonic() < deadline and len(signals) < 2:
            self.back_end.wait([cell for cell, _ in self.running.values()], _POLL_SECONDS)
            self._collect()
            self._report()
        waited = "by a second signal" if len(signals) > 1 else f"after {GRACE_SECONDS:g} s"
        for index, (cell, started) in list(self.running.items()):
            cell.kill()
            seconds = round(time.monotonic() - started, 3)
            del self.running[index]
            error = f"did not stop at {name} and was killed {waited}"
            self._finish(index, CellResult(self.states[index].task, "interrupted", error=error, seconds=seconds))
        for index, state in enumerate(self.states):
            if index not in self.results:
                error = f"not started before {name}"
                self._finish(index, CellResult(state.task, "interrupted", error=error, attempts=0))


class EventTail:
    """Reads a growing ``events.jsonl`` without ever reading a line twice."""

    def __init__(self, path: Path) -> None:
        """Follow ``path``, which need not exist yet."""
        self._path, self._offset = path, 0
        self._event: dict[str, Any] | None = None

    def newest(self) -> dict[str, Any] | None:
        """The newest complete event so far; a line that is still being written waits for its end."""
        with suppress(OSError), open(self._path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._offset:  # the cell was started afresh
                self._offset, self._event = 0, None
            stream.seek(self._offset)
            complete, newline, _ = stream.read().rpartition(b"\n")
            self._offset += len(complete) + len(newline)
            for line in reversed(complete.splitlines()):
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self._event = event
                        break
        return self._event


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; signals can be handled in the main thread only."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():  # None stands for a handler that was not installed by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
