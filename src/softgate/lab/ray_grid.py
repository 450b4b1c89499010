"""Runs each cell as a Ray task: on the cluster that ``RAY_ADDRESS`` names, or on one started on this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from softgate.errors import MissingExtraError
from softgate.lab.files import write_json
from softgate.lab.grid import RunningCell
from softgate.lab.local_grid import capture_output, obituary
from softgate.lab.task import RESULT, CellResult, CellTask, run_task

#: Results are small dictionaries; the default store would claim a third of the memory.
_OBJECT_STORE_BYTES = 80 * 2**20


class RayBackEnd:
    """Starts cells as Ray tasks; see :class:`softgate.lab.grid.BackEnd`."""

    def __init__(self, cpus: int) -> None:
        """Connect to the cluster, or start one with ``cpus`` cores on this machine."""
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "ray", "running a grid on a cluster (--on ray)") from None
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if not self._started:
            return
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not os.environ.get("RAY_ADDRESS"):
            local = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
            settings.update(address="local", **local)
        with _kept_signal_handlers():
            ray.init(**settings)

    def start(self, task: CellTask) -> RayCell:
        """Start one cell; ``max_calls=1`` gives it a worker process of its own."""
        gpus = 1 if task.device == "cuda" else 0
        options = {"num_cpus": task.threads, "num_gpus": gpus, "max_retries": 0, "max_calls": 1}
        name = f"{task.paper}/{task.cell}/{task.seed}"
        remote = self._ray.remote(**options)(_run_remotely)
        return RayCell(self._ray, task, remote.options(name=name).remote(task.as_dict()))

    def wait(self, cells: Sequence[RunningCell], seconds: float) -> None:
        """Return when a cell ends, at the latest after ``seconds``."""
        self._ray.wait([cell.reference for cell in cast(Sequence[RayCell], cells)], timeout=seconds)

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here."""
        if self._started:
            self._ray.shutdown()


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Undo what Ray does to SIGTERM: it must keep its meaning for the caller after the grid."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class RayCell:
    """A cell that runs as a Ray task; see :class:`softgate.lab.grid.RunningCell`."""

    def __init__(self, ray: Any, task: CellTask, reference: Any) -> None:
        self.reference = reference
        self._ray, self._task, self._started = ray, task, time.monotonic()

    def result(self) -> CellResult | None:
        """What the task returned, or why it could not return."""
        ready, _ = self._ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            record = self._ray.get(self.reference)
        except self._ray.exceptions.RayError as error:
            seconds = round(time.monotonic() - self._started, 3)
            stopped = isinstance(error, self._ray.exceptions.TaskCancelledError)
            how = "was stopped" if stopped else f"ended ({type(error).__name__})"
            return CellResult(
                self._task,
                "interrupted" if stopped else "failed",
                error=obituary(self._task, how),
                seconds=seconds,
            )
        if record["file"] is not None and not (Path(self._task.folder) / RESULT).is_file():
            with suppress(OSError):  # the worker's disk is not ours, and the figures are here in any case
                write_json(Path(self._task.folder) / RESULT, json.loads(record["file"]))
        return CellResult.from_dict(record["result"])

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the task, which then writes its checkpoint if it has one."""
        self._ray.cancel(self.reference, force=False)

    def kill(self) -> None:
        """Kill the task's worker."""
        self._ray.cancel(self.reference, force=True)


def _run_remotely(task: dict[str, Any]) -> dict[str, Any]:
    """Run in a Ray worker: the result by value, and the text of ``result.json`` for a driver on another disk."""
    cell = CellTask(**task)
    capture_output(Path(cell.folder))
    result = run_task(cell)
    path = Path(cell.folder) / RESULT
    return {"result": result.as_dict(), "file": path.read_text(encoding="utf-8") if path.is_file() else None}
