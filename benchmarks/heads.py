"""Output layers of very many classes: one whole SGD step each, beside what the arithmetic of the factored step allows.

    python benchmarks/heads.py [--classes 10000 100000 793471] [--features 512] [--rows 200] [--out DIR]

One thread, processor time of the process, one layer in memory at a time. ``limit`` is the time that the matrix products
of the factored step would take at the speed of a single product of its size, measured beside it. Figures go to
DIR/benchmark-heads.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from _timing import CONSOLE, table, write_record
from softgate.lab.output_layers import LAYERS, head_step, output_layer
from softgate.lab.timing import load_per_core, step_seconds

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
#: Turns of each layer; a dense step of 793,471 classes takes eight seconds.
TURNS = {"factored": 60, "log_softmax": 3, "adaptive": 5, "hierarchical": 10}


def products(features: int, rows: int) -> float:
    """Floating-point operations of the matrix products of one factored step with a stored inverse of U."""
    return 7 * 2.0 * rows * features**2 + 4 * 2.0 * rows**2 * features


def product_speed(features: int, rows: int) -> float:
    """Operations per second of the product of the batch with a matrix of the size of Q."""
    h, q = torch.randn(rows, features), torch.randn(features, features)
    return 2.0 * rows * features**2 / step_seconds(lambda: h @ q, turns=200, warm=10).best


def measure(classes: int, features: int, rows: int) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    best = 0.0
    for name in LAYERS:
        layer = output_layer(name, classes, features, lr=0.01)
        timing = step_seconds(head_step(layer, classes, features, rows), turns=TURNS[name], warm=3)
        seconds[name] = timing.median
        best = timing.best if name == "factored" else best
        del layer
    limit = products(features, rows) / product_speed(features, rows)
    return {
        "classes": classes,
        "features": features,
        "rows": rows,
        "ms": {name: 1e3 * taken for name, taken in seconds.items()},
        "speedup": {f"over {name}": seconds[name] / seconds["factored"] for name in LAYERS[1:]},
        "factored_best_ms": 1e3 * best,
        "limit_ms": 1e3 * limit,
        "best / limit": best / limit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000, 793_471])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(classes, options.features, options.rows) for classes in options.classes]
    header = ["classes", *LAYERS, *found[0]["speedup"], "limit", "best / limit"]
    lines = [[f["classes"], *f["ms"].values(), *f["speedup"].values(), f["limit_ms"], f["best / limit"]] for f in found]
    table(f"one SGD step, {options.features} features, {options.rows} rows, ms (median)", header, lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-heads.json", {"heads": found})


if __name__ == "__main__":
    main()
