"""Margin losses against the losses of torch, and the cell that resets before the product against nn.GRU.

    python benchmarks/margins.py [--seconds S] [--out DIR]

One thread, candidates in turns, forward and backward. ``multi_margin`` is torch's sum over all rivals: another loss of
the same family. Figures go to DIR/benchmark-margins.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import crammer_singer_loss, l2_svm_loss
from softgate.models import GRUCellResetBefore

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPES = ((256, 10), (4096, 113), (1024, 1000), (512, 32_000))
CELLS = ((256, 41, 64), (256, 21, 256), (16, 100, 32))

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "multi_margin": F.multi_margin_loss,
    "l2_svm": l2_svm_loss,
    "crammer_singer": crammer_singer_loss,
}


def measure_losses(rows: int, classes: int, seconds: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(rows, classes, generator=generator).requires_grad_()
    labels = torch.randint(classes, (rows,), generator=generator)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(scores, labels), scores)

    steps = {name: step(loss) for name, loss in LOSSES.items()}
    times = interleaved(steps, turns=7, seconds=seconds, most=400)
    memory = {name: peak_bytes(run) for name, run in steps.items()}
    base = times["cross_entropy"].median
    return {
        "rows": rows,
        "classes": classes,
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        **{f"{name} / cross_entropy": times[name].median / base for name in ("l2_svm", "crammer_singer")},
        "peak_bytes": memory,
        "memory / cross_entropy": memory["l2_svm"] / memory["cross_entropy"],
    }


def measure_cell(batch: int, steps: int, width: int, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    inputs = torch.randn(batch, steps, 10)
    ours, theirs = GRUCellResetBefore(10, width), nn.GRU(10, width, batch_first=True)

    def train(states: Callable[[], Tensor], module: nn.Module) -> Callable[[], object]:
        weights = list(module.parameters())
        return lambda: torch.autograd.grad(states()[:, -1].square().sum(), weights)

    runs = {"reset_before": train(lambda: ours.scan(inputs), ours), "nn.GRU": train(lambda: theirs(inputs)[0], theirs)}
    times = interleaved(runs, turns=7, seconds=seconds, most=100)
    return {
        "batch": batch,
        "steps": steps,
        "width": width,
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        "reset_before / nn.GRU": times["reset_before"].median / times["nn.GRU"].median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the tables")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    losses = [measure_losses(*shape, options.seconds) for shape in SHAPES]
    cells = [measure_cell(*shape, options.seconds) for shape in CELLS]
    for title, found in (("losses", losses), ("cells", cells)):
        sizes = [name for name, value in found[0].items() if isinstance(value, int)]
        ratios = [name for name in found[0] if "/" in name]
        lines = [[*(f[s] for s in sizes), *f["ms"].values(), *(f[r] for r in ratios)] for f in found]
        table(f"{title}: forward + backward, ms (median)", [*sizes, *found[0]["ms"], *ratios], lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-margins.json", {"losses": losses, "cells": cells})


if __name__ == "__main__":
    main()
