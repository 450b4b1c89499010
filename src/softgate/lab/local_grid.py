"""Runs each cell in a process of its own on this machine.

The processes come from a ``forkserver`` that has imported torch and softgate once: a start costs milliseconds instead
of seconds, and unlike plain ``fork`` it never copies a parent that has threads.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import cast

from softgate.lab.grid import GRACE_SECONDS, RunningCell
from softgate.lab.task import STDERR, CellResult, CellTask, Status, run_task

#: Imported once and inherited by every cell; the first optimizer of a process would import torch._dynamo anyway.
_PRELOAD = ["torch", "torch._dynamo", "softgate.lab.local_grid"]
_TAIL_BYTES = 4000


class LocalBackEnd:
    """Starts cells as processes; see :class:`softgate.lab.grid.BackEnd`."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)

    def start(self, task: CellTask) -> LocalCell:
        """Start one cell."""
        return LocalCell(self._context, task)

    def wait(self, cells: Sequence[RunningCell], seconds: float) -> None:
        """Return when a cell reports or ends, at the latest after ``seconds``."""
        local = cast(Sequence[LocalCell], cells)
        wait([source for cell in local for source in (cell.report, cell.process.sentinel)], timeout=seconds)

    def close(self) -> None:
        """Nothing to give back: the server ends with this process."""


class LocalCell:
    """A cell that runs in a process; see :class:`softgate.lab.grid.RunningCell`."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, task: CellTask) -> None:
        self.report, sender = context.Pipe(duplex=False)
        self._task, self._started, self._interrupted = task, time.monotonic(), False
        arguments = (task, sender, dict(os.environ))
        self.process = context.Process(target=_worker, args=arguments, name=f"{task.paper}/{task.cell}/{task.seed}")
        self.process.start()
        sender.close()  # the worker holds the only other end, so its death is visible as end of file here

    def result(self) -> CellResult | None:
        """What the worker reported, or what its exit status says if it died without a report."""
        alive = self.process.is_alive()  # asked first: what a dead worker had to say is then in the pipe
        if not self.report.poll() and alive:
            return None
        try:
            result = CellResult.from_dict(json.loads(self.report.recv_bytes())) if self.report.poll() else None
        except EOFError:
            result = None
        self.process.join(GRACE_SECONDS)
        self.kill()
        return result or self._obituary()

    def interrupt(self) -> None:
        """Send SIGTERM, at which the training loop writes its checkpoint and any other code is cut short."""
        self._interrupted = True
        self.process.terminate()

    def kill(self) -> None:
        """Kill the worker, if it still runs, and whatever it started: it leads a process group of its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(cast(int, self.process.pid), signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.report.close()

    def _obituary(self) -> CellResult:
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        seconds = round(time.monotonic() - self._started, 3)
        status: Status = "interrupted" if self._interrupted else "failed"
        return CellResult(self._task, status, error=obituary(self._task, how), seconds=seconds)


def obituary(task: CellTask, how: str) -> str:
    """Error text for a cell whose process ended without a report: what it wrote last, and ``how`` it ended."""
    return f"{stderr_tail(Path(task.folder))}\nthe process of the cell {how} before it could report".lstrip()


def stderr_tail(folder: Path) -> str:
    """The end of what a cell wrote to its standard error."""
    with suppress(OSError), open(folder / STDERR, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL_BYTES))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith("Extension modules: ")).strip()
    return ""


def _worker(task: CellTask, sender: Connection, variables: Mapping[str, str]) -> None:
    os.setsid()  # Ctrl-C at the terminal reaches the parent alone, which then interrupts each cell exactly once
    os.environ.clear()  # the server was started with the variables of an earlier moment
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt_once)
    threading.Thread(target=_follow_parent, daemon=True).start()
    capture_output(Path(task.folder))
    result = run_task(task)
    sender.send_bytes(json.dumps(result.as_dict()).encode())


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clean-up short
    raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")


def capture_output(folder: Path) -> None:
    """Send everything this process prints, native crashes included, to ``stderr.log`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(folder / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.enable()


def _follow_parent() -> None:
    """Stop the cell when the process that started it is gone, so that no orphan holds the folder's lock."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(os.getpid(), signal.SIGKILL)
