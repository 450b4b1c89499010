"""Networks with exits: how much of the saving in multiply-adds becomes time, and what heads and gates cost.

    python benchmarks/early_exit.py [--batches 8,64,256] [--turns N] [--out DIR]

One thread, candidates in turns. Gates let out planned shares of the batch, exit by exit. ``dense`` is the same network
without exits, ``ideal`` is its time times the mean cost of the samples in multiply-adds: what leaving could save at
best. ``masked`` computes every stage for all samples. ``all exits`` runs all stages, heads and gates and lets nobody
out. Figures go to DIR/benchmark-early-exit.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _timing import CONSOLE, table, write_record
from softgate.dynamic import EarlyExit, UncertaintyGate
from softgate.lab.exit_networks import cnn, mlp, plan_gates
from softgate.lab.timing import interleaved, load_per_core

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: network -> its size: width of a CNN and side of its images, or width and blocks of an MLP
NETWORKS: dict[str, tuple[str, int, int]] = {
    "CNN": ("cnn", 32, 32),
    "small CNN": ("cnn", 32, 16),
    "MLP": ("mlp", 512, 6),
}
#: of the batch, exit by exit
SHARES = (0.35, 0.25, 0.15, 0.1, 0.05)


def build(kind: str, width: int, size: int, batch: int) -> tuple[nn.Sequential, EarlyExit, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "cnn":
        seq, cuts = cnn(3, width, 10)
        x = torch.randn(batch, 3, size, size)
    else:
        seq, cuts = mlp(width, width, size, 10)
        x = torch.randn(batch, width)
    model = EarlyExit.from_sequential(seq.eval(), cuts, x[:1]).eval()
    for head in model.heads:
        nn.init.normal_(head.weight)
    return seq, model, x


def closed(model: EarlyExit) -> None:
    """Learned gates that let nobody out."""
    for place in range(len(model.gates)):
        gate = UncertaintyGate()
        nn.init.zeros_(gate.linear.weight)
        nn.init.constant_(gate.linear.bias, -30.0)
        model.gates[place] = gate


@torch.no_grad()
def measure(name: str, batch: int, turns: int) -> dict[str, Any]:
    seq, model, x = build(*NETWORKS[name], batch)
    _, shut, _ = build(*NETWORKS[name], batch)
    closed(shut)
    plan_gates(model, x, SHARES)
    cost = model(x).mean_cost
    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: seq(x),
        "compact": lambda: model.infer(x),
        "masked": lambda: model.infer(x, "masked"),
        "all exits": lambda: shut.infer(x),
    }
    if batch <= 64:
        runs["sequential"] = lambda: model.infer(x, "sequential")
    times = interleaved(runs, turns=turns)
    ms = {key: 1e3 * timing.best for key, timing in times.items()}
    assert model.measured is not None
    return {
        "network": name,
        "batch": batch,
        "mean_cost": cost,
        "ms": {**ms, "ideal": ms["dense"] * cost},
        "speedup": ms["dense"] / ms["compact"],
        "of_ideal": cost * ms["dense"] / ms["compact"],
        "overhead": ms["all exits"] / ms["dense"] - 1.0,
        "overhead_multiply_adds": model.measured.overhead,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[8, 64, 256])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(name, batch, options.turns) for name in NETWORKS for batch in options.batches]
    times = ("dense", "ideal", "compact", "masked", "all exits")
    table(
        "inference with exits, ms (best)",
        ["network", "batch", "mean cost", *times, "speed-up", "of ideal", "heads and gates"],
        [
            [f["network"], f["batch"], f["mean_cost"], *(f["ms"][t] for t in times), f["speedup"], f["of_ideal"],
             f["overhead"]]
            for f in found
        ],
    )  # fmt: skip
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-early-exit.json", {"inference": found})


if __name__ == "__main__":
    main()
