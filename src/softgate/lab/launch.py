"""Measure one cell with several processes: what a ``paper`` scale needs.

    torchrun --nproc-per-node 8 -m softgate.lab.launch sigmoid-attention sigmoid --scale paper --device cuda
    softgate reproduce sigmoid-attention --scale paper --resume

The first command trains the cell ``sigmoid`` with all processes and leaves its result where ``reproduce --resume``
finds it; run it once for every cell and seed. It can be interrupted and repeated: training goes on from its checkpoint.
``accelerate launch --module softgate.lab.launch …`` does the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from softgate.lab import distributed
from softgate.lab.paper import SCALES
from softgate.lab.reproduce import cell_folder
from softgate.lab.task import CellTask, follow_task, is_finished, run_task

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one cell in this process and those started beside it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", help="slug of the paper, as `softgate papers` lists them")
    parser.add_argument("cell", help="name of the cell, as `softgate show PAPER` lists them")
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--download", action="store_true", help="data may be downloaded")
    parser.add_argument("--module", default="", help="module whose PAPER is used, for a paper that is not softgate's")
    options = parser.parse_args(arguments)
    task = CellTask(
        paper=options.paper,
        scale=options.scale,
        cell=options.cell,
        seed=options.seed,
        folder=str(cell_folder(options.out, options.paper, options.scale, options.cell, options.seed)),
        resume=True,
        threads=torch.get_num_threads(),
        device=options.device,
        download=options.download,
        module=options.module,
    )
    world = distributed.join(options.device)
    finished = world.from_main(str(is_finished(task)))  # as the first process sees it: folders need not be shared
    if world.rank:
        if finished == "False":
            follow_task(task)
        return 0
    result = run_task(task)
    print(result.error or f"{options.cell} seed {options.seed}: {result.status}", flush=True)
    return 0 if result.status == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
