"""Merging maps pixel by pixel: our banded mixture against cat + interpolate + multiply + sum, and the ranking loss.

    python benchmarks/pixel_mixture.py [--seconds S] [--out DIR]

One thread, candidates in turns. ``plain`` is what a user writes with torch (and what the authors' code does): the maps
concatenated, the weights upsampled, multiplied, summed. ``plain, stacked`` gets the maps in one tensor, as ours does;
``limit`` copies as many bytes as the mixture has to read and write. The relative counting loss stands against a loop
over images as in the authors' code. Figures go to DIR/benchmark-pixel-mixture.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from _timing import CONSOLE, peak_bytes, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.losses import relative_local_counting_loss
from softgate.routing import pixelwise_mixture

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: batch, experts, height, width, ratio of the maps' sides to the weights'
SHAPES = ((1, 3, 768, 1024, 4), (1, 3, 768, 1024, 16), (16, 3, 128, 128, 4), (8, 3, 16, 16, 4))


def plain(maps: list[Tensor], weights: Tensor) -> Tensor:
    return stacked(torch.cat(maps, 1), weights)


def stacked(maps: Tensor, weights: Tensor) -> Tensor:
    full = F.interpolate(weights, maps.shape[-2:], mode="nearest")
    return (full * maps).sum(1, keepdim=True)


def measure_mixture(batch: int, experts: int, height: int, width: int, ratio: int, seconds: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(batch, experts, height, width, generator=generator)
    weights = torch.rand(batch, experts, height // ratio, width // ratio, generator=generator).softmax(1)
    apart = [m.contiguous() for m in maps.split(1, 1)]
    source, target = torch.rand(batch, experts + 1, height, width), torch.zeros(batch, experts + 1, height, width)
    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(apart, weights),
        "plain, stacked": lambda: stacked(maps, weights),
        "softgate": lambda: pixelwise_mixture(maps, weights),
        # a copy reads and writes: half of the tensor moves the bytes of the mixture
        "limit": lambda: target[:, : (experts + 1) // 2].copy_(source[:, : (experts + 1) // 2]),
    }
    return {
        "shape": f"{batch}x{experts}x{height}x{width}/{ratio}",
        **compared(runs, seconds),
        "training": compared(training(apart, maps, weights), seconds),
    }


def training(apart: list[Tensor], maps: Tensor, weights: Tensor) -> dict[str, Callable[[], object]]:
    """Forward and backward to maps and weights."""
    apart = [m.clone().requires_grad_() for m in apart]
    maps, weights = maps.clone().requires_grad_(), weights.clone().requires_grad_()
    upstream = torch.rand_like(apart[0])
    return {
        "plain": lambda: torch.autograd.grad(plain(apart, weights), [*apart, weights], upstream),
        "plain, stacked": lambda: torch.autograd.grad(stacked(maps, weights), [maps, weights], upstream),
        "softgate": lambda: torch.autograd.grad(pixelwise_mixture(maps, weights), [maps, weights], upstream),
    }


def compared(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, Any]:
    times = interleaved(runs, turns=7, seconds=seconds, most=400)
    memory = {name: peak_bytes(run) for name, run in runs.items()}
    return {
        "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        "peak_bytes": memory,
        "plain / softgate": times["plain"].median / times["softgate"].median,
        "plain / softgate, memory": memory["plain"] / memory["softgate"],
    }


def looped(pred: Tensor, target: Tensor, patch: int = 16) -> Tensor:
    """The ranking loss image by image and group by group."""
    total = pred.new_zeros(())
    error = (pred - target).square().detach()
    pools = [F.avg_pool2d(x, patch) * patch**2 for x in (error, pred, target)]
    for e, p, t in zip(*(pool.flatten(1) for pool in pools), strict=True):
        hard = e.topk(9).indices
        q = p[hard][t[hard].sort(descending=True).indices]
        for s in range(3):
            first, second = q[s] - q[s + 3], q[s] - q[s + 6]
            total = total + F.relu(-first) + F.relu(-second) + F.relu(first - second)
    return total


def measure_loss(batch: int, side: int, seconds: float) -> dict[str, Any]:
    pred, target = torch.rand(batch, 1, side, side).requires_grad_(), torch.rand(batch, 1, side, side)
    runs = {
        "plain": lambda: torch.autograd.grad(looped(pred, target), pred),
        "softgate": lambda: torch.autograd.grad(relative_local_counting_loss(pred, target), pred),
    }
    return {"shape": f"{batch}x1x{side}x{side}", **compared(runs, seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the tables")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mixtures = [measure_mixture(*shape, options.seconds) for shape in SHAPES]
    losses = [measure_loss(16, 128, options.seconds), measure_loss(1, 768, options.seconds)]
    backward = [{"shape": found["shape"], **found["training"]} for found in mixtures]
    titles = ("mixture, forward", "mixture, forward + backward", "relative counting loss, forward + backward")
    for title, found in zip(titles, (mixtures, backward, losses), strict=True):
        ratios = [name for name in found[0] if "/" in name]
        lines = [[f["shape"], *f["ms"].values(), *(f[r] for r in ratios)] for f in found]
        table(f"{title}, ms (median)", ["shape", *found[0]["ms"], *ratios], lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-pixel-mixture.json", {"mixtures": mixtures, "losses": losses})


if __name__ == "__main__":
    main()
