"""What OrthoGrad adds to an AdamW step.

    python benchmarks/optim.py [--seconds S] [--out DIR]

One thread, candidates in turns. Figures go to DIR/benchmark-optim.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.optim import project_orthogonal_

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
MODELS = {
    "MLP 226-200-200-113": [(200, 226), (200, 200), (113, 200)],
    "20 layers of 256": [(256, 256), (256,)] * 20,
    "12 matrices of 1024": [(1024, 1024)] * 12,
}


def weights(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for weight in made:
        weight.grad = 1e-3 * torch.randn(weight.shape, generator=generator)
    return made


def measure(name: str, shapes: Sequence[tuple[int, ...]], seconds: float) -> dict[str, Any]:
    params = weights(shapes)
    options: dict[str, Any] = {"lr": 1e-6, "weight_decay": 0.0}
    candidates = {
        "adamw_foreach": torch.optim.AdamW(weights(shapes), foreach=True, **options).step,
        "adamw_fused": torch.optim.AdamW(weights(shapes), fused=True, **options).step,
        "projection": lambda: project_orthogonal_(params),
        "projection_global": lambda: project_orthogonal_(params, scope="global"),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=400)
    return {
        "model": name,
        "parameters": sum(p.numel() for p in params),
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
        "overhead on foreach": times["projection"].median / times["adamw_foreach"].median,
        "overhead on fused": times["projection"].median / times["adamw_fused"].median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(name, shapes, options.seconds) for name, shapes in MODELS.items()]
    header = ["model", "parameters", *found[0]["ms"], "overhead on foreach", "overhead on fused"]
    lines = [[f["model"], f["parameters"], *f["ms"].values(), *(f[h] for h in header[-2:])] for f in found]
    table("one step, ms (median)", header, lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-optim.json", {"orthograd": found})


if __name__ == "__main__":
    main()
