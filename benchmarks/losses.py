"""Losses of dense logits, forward and backward, against F.cross_entropy; StableMax also against the float64 original.

    python benchmarks/losses.py [--seconds S] [--device cpu|cuda] [--out DIR]

One thread, candidates in turns, which on a GPU end with its work. Memory is the peak of what one forward and backward
pass allocates. Figures go to DIR/benchmark-losses.json, those of a GPU to DIR/benchmark-losses-cuda.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import (
    collapse_free_cross_entropy,
    comp_sum_loss,
    l2_svm_loss,
    spherical_softmax_loss,
    stablemax_cross_entropy,
    taylor_softmax_loss,
    z_loss,
)

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPES = {
    "cpu": ((256, 10), (4096, 113), (1024, 1000), (512, 32_000), (64, 131_072)),
    "cuda": ((256, 10), (4096, 113), (8192, 1000), (8192, 32_000), (4096, 131_072)),
}
DTYPES = (torch.float32, torch.bfloat16)


def float64_original(logits: Tensor, labels: Tensor) -> Tensor:
    """The formula as published code computes it: cast to float64, log of the normalised s, gather."""
    x = logits.double()
    s = torch.where(x < 0, 1 / (1 - x + 1e-30), x + 1)
    log_probabilities = torch.log(s / s.sum(-1, keepdim=True))
    return -log_probabilities.gather(-1, labels[:, None]).mean()


CANDIDATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "stablemax": stablemax_cross_entropy,
    "collapse_free": collapse_free_cross_entropy,
    "stablemax_float64": float64_original,
}


DENSE_SHAPES = {
    "cpu": ((256, 10), (4096, 113), (1024, 1000), (512, 32_000), (2048, 32_000)),
    "cuda": SHAPES["cuda"],
}
DENSE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "comp_sum tau 1": comp_sum_loss,
    "comp_sum tau 1.7": partial(comp_sum_loss, tau=1.7),
    "z_loss": z_loss,
    "taylor_softmax": taylor_softmax_loss,
    "spherical_softmax": spherical_softmax_loss,
    "l2_svm": l2_svm_loss,
}


def steps_of(
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]], rows: int, classes: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], object]]:
    """Forward and backward pass of every loss on the same logits."""
    generator = torch.Generator(device).manual_seed(0)
    logits = (3 * torch.randn(rows, classes, generator=generator, device=device)).to(dtype).requires_grad_()
    labels = torch.randint(classes, (rows,), generator=generator, device=device)

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(logits, labels), logits)

    return {name: step(loss) for name, loss in losses.items()}


def measure_dense(rows: int, classes: int, seconds: float, device: str) -> dict[str, Any]:
    steps = steps_of(DENSE, rows, classes, torch.float32, device)
    times = interleaved(steps, turns=5, seconds=seconds, most=400, device=device)
    ms = {name: 1e3 * timing.median for name, timing in times.items()}
    return {
        "rows": rows,
        "classes": classes,
        "ms": ms,
        "over cross_entropy": {
            name: taken / ms["cross_entropy"] for name, taken in ms.items() if name != "cross_entropy"
        },
    }


def measure(rows: int, classes: int, dtype: torch.dtype, seconds: float, device: str) -> dict[str, Any]:
    steps = steps_of(CANDIDATES, rows, classes, dtype, device)
    times = interleaved(steps, turns=7, seconds=seconds, most=400, device=device)
    memory = {name: peak_bytes(run, device) for name, run in steps.items()}
    base, original = times["cross_entropy"], times["stablemax_float64"]
    return {
        "rows": rows,
        "classes": classes,
        "dtype": str(dtype).removeprefix("torch."),
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        "stablemax / cross_entropy": times["stablemax"].median / base.median,
        "collapse_free / cross_entropy": times["collapse_free"].median / base.median,
        "speedup over float64": original.median / times["stablemax"].median,
        "peak_bytes": memory,
        "memory / cross_entropy": memory["stablemax"] / memory["cross_entropy"],
        "memory / float64": memory["stablemax"] / memory["stablemax_float64"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the table")
    parser.add_argument("--device", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = options.device
    found = [measure(*shape, dtype, options.seconds, device) for dtype in DTYPES for shape in SHAPES[device]]
    ratios = [name for name in found[0] if "/" in name or "over" in name]
    header = ["dtype", "rows", "classes", *CANDIDATES, *ratios]
    lines = [[f["dtype"], f["rows"], f["classes"], *f["ms"].values(), *(f[r] for r in ratios)] for f in found]
    table("forward + backward, ms (median)", header, lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    dense = [measure_dense(*shape, options.seconds, device) for shape in DENSE_SHAPES[device]]
    names = list(dense[0]["over cross_entropy"])
    lines = [[f["rows"], f["classes"], f["ms"]["cross_entropy"], *f["over cross_entropy"].values()] for f in dense]
    table("forward + backward over F.cross_entropy", ["rows", "classes", "cross_entropy, ms", *names], lines)
    suffix = "" if device == "cpu" else "-cuda"
    write_record(options.out / f"benchmark-losses{suffix}.json", {"stablemax": found, "dense": dense})


if __name__ == "__main__":
    main()
