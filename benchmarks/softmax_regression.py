"""Softmax regression: a batch of fits beside a loop of scipy's Levenberg-Marquardt with the exact Jacobian.

    python benchmarks/softmax_regression.py [--problems P,n,d] [--loop L] [--seconds S] [--out DIR]

One thread, float64, candidates in turns. Both minimise the same loss to the same tolerance; scipy solves the first L
problems and its time is scaled to all of them. Targets are distributions of the family itself (``attainable``), or with
normal noise of deviation 0.1 (``noisy``) or 0.3 (``far``) on the logits, where Gauss-Newton steps converge slowly. The
excess is how far a loss is above the smaller of the two, at most. Figures go to
DIR/benchmark-softmax-regression.json. Smoke: --problems 20,8,3 --loop 5.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.diagnostics import SoftmaxRegression
from softgate.lab.timing import interleaved, load_per_core

NOISES = {"attainable": 0.0, "noisy": 0.1, "far": 0.3}
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def problems(count: int, rows: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    """Rows, and targets in the family or near it."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(count, rows, width, generator=generator, dtype=torch.float64) / width**0.5
    x = 2 * torch.randn(count, width, 1, generator=generator, dtype=torch.float64)
    off = noise * torch.randn(count, rows, generator=generator, dtype=torch.float64)
    return a, ((a @ x).squeeze(-1) + off).softmax(-1)


def scipy_fit(a: np.ndarray, b: np.ndarray) -> float:
    def softmax(x: np.ndarray) -> np.ndarray:
        z = a @ x
        e = np.exp(z - z.max())
        return e / e.sum()

    def jacobian(x: np.ndarray) -> np.ndarray:
        f = softmax(x)
        return f[:, None] * (a - f @ a)

    tolerance = {"xtol": 1e-10, "ftol": 1e-10, "gtol": 1e-10}
    found = least_squares(lambda x: softmax(x) - b, np.zeros(a.shape[1]), jacobian, method="lm", **tolerance)
    return float(found.cost)


def measure(count: int, rows: int, width: int, noise: float, loop: int, seconds: float) -> dict[str, Any]:
    a, b = problems(count, rows, width, noise)
    pairs = list(zip(a.numpy()[:loop], b.numpy()[:loop], strict=True))
    model = SoftmaxRegression()
    x, _ = model.fit(a, b)
    ours = 0.5 * ((a @ x.unsqueeze(-1)).squeeze(-1).softmax(-1) - b).square().sum(-1)[:loop].numpy()
    theirs = np.array([scipy_fit(*pair) for pair in pairs])
    steps = {"batch": lambda: model.fit(a, b), "scipy": lambda: [scipy_fit(*pair) for pair in pairs]}
    times = interleaved(steps, turns=5, seconds=seconds, most=50)
    found = {"batch": times["batch"].median, "scipy": times["scipy"].median * count / len(pairs)}
    least = np.minimum(ours, theirs)
    return {
        "problems": (count, rows, width),
        "seconds": found,
        "scipy / batch": found["scipy"] / found["batch"],
        "excess": {"batch": float((ours - least).max()), "scipy": float((theirs - least).max())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=lambda text: tuple(map(int, text.split(","))), default=(1000, 64, 16))
    parser.add_argument("--loop", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sections = {}
    for name, noise in NOISES.items():
        found = sections[name] = measure(*options.problems, noise, options.loop, options.seconds)
        lines = [[which, value, found["excess"][which]] for which, value in found["seconds"].items()]
        table(f"{name} {found['problems']}: all fits (median)", ["candidate", "s", "excess of the loss"], lines)
        CONSOLE.print(f"scipy / batch {found['scipy / batch']:.2f}, load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-softmax-regression.json", sections)


if __name__ == "__main__":
    main()
