"""A paper whose cells end in every way a cell can end; ``CellTask.module`` names this module."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import numpy as np
import torch

from softgate.lab.cell import CellRun
from softgate.lab.interrupts import Interrupted, deferred_signals
from softgate.lab.paper import Cell, Figures, Paper, Scale


def _checkpointing(run: CellRun) -> Figures:
    with deferred_signals() as flag:
        for step in range(600):
            run.log(step)
            time.sleep(0.05)
            if flag.signum:
                (run.folder / "checkpoint").write_text(str(step))
                raise Interrupted(flag.signum)
    return {"step": 600}


def _stubborn(run: CellRun) -> Figures:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run.log(0)
    time.sleep(60)
    return {"x": 0.0}


def _defiant(run: CellRun) -> Figures:
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(9))
    run.log(0)
    time.sleep(60)
    return {"x": 0.0}


def _orphaning(run: CellRun) -> Figures:
    child = os.fork()  # holds every file descriptor of the cell, the report pipe included
    if child == 0:
        time.sleep(60)
    (run.folder / "child").write_text(str(child))
    os._exit(3)


def _timed(run: CellRun) -> Figures:
    began = time.monotonic()
    time.sleep(0.4)
    return {"began": began, "ended": time.monotonic()}


def _random(run: CellRun) -> Figures:
    return {
        "torch": torch.rand(3),
        "numpy": float(np.random.rand()),
        "python": random.random(),
        "threads": torch.get_num_threads(),
    }


def _fine(run: CellRun) -> Figures:
    print("printed by the cell")
    run.log(1, 2, loss=0.5)
    return {"x": 1.5, "curve": [1, float("nan")], "rows": torch.eye(2), "seed": run.seed}


def _raising(run: CellRun) -> Figures:
    raise ValueError("no such luck")


CELLS = {
    "fine": _fine,
    "raises": _raising,
    "exits": lambda run: sys.exit(3),
    "vanishes": lambda run: os._exit(7),
    "segfaults": lambda run: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda run: os.kill(os.getpid(), signal.SIGKILL),
    "infinite": lambda run: {"x": float("inf")},
    "words": lambda run: {"x": "many"},
    "nothing": lambda run: None,
    "checkpointing": _checkpointing,
    "stubborn": _stubborn,
    "defiant": _defiant,
    "sleeps": lambda run: time.sleep(60),
    "orphaning": _orphaning,
    "timed": _timed,
    "random": _random,
    "variable": lambda run: {"x": float(os.environ["SOFTGATE_TEST_VARIABLE"])},
    "pid": lambda run: {"pid": os.getpid()},
}

PAPER = Paper(
    slug="fake",
    title="A fake paper",
    arxiv="0000.00000",
    date="2020-01",
    summary="Cells for tests of the grid.",
    claims=(),
    scales={"smoke": Scale(cells=tuple(Cell(name, {"width": 3}, measure) for name, measure in CELLS.items()))},
    measure=_fine,
)
