"""Mutual information of one layer by adaptive bins and by noise, beside numpy, torch and scikit-learn.

    python benchmarks/information.py [--seconds S] [--out DIR]

One thread, candidates in turns. Figures go to DIR/benchmark-information.json.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KernelDensity
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.diagnostics import mutual_information
from softgate.lab.timing import interleaved, load_per_core

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SHAPES = ((4096, 10), (4096, 3), (10_000, 512))
KDE_SHAPES = ((4096, 10), (4096, 128))
_BINS, _VARIANCE = 30, 0.1


def layer(rows: int, units: int) -> tuple[Tensor, Tensor]:
    """Activity of a tanh layer behind a narrow one, and labels."""
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(rows, 3, generator=generator).round()
    return torch.tanh(code @ torch.randn(3, units, generator=generator)), (code[:, 0] > 0).long()


def edges_by_numpy(T: np.ndarray) -> np.ndarray:
    levels = np.unique(T)
    return np.array([-1.000001, *(levels[k * len(levels) // _BINS] for k in range(_BINS)), levels[-1]], dtype=T.dtype)


def by_numpy(T: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Rows of digits as opaque bytes, which is how codes of information planes count them."""
    digits = np.ascontiguousarray(np.digitize(T, edges_by_numpy(T)).astype(np.int8))
    rows = digits.view(np.dtype((np.void, digits.shape[1]))).ravel()

    def entropy(part: np.ndarray) -> float:
        share = np.unique(part, return_counts=True)[1] / len(part)
        return float(-(share * np.log2(share)).sum())

    h = entropy(rows)
    return h, h - sum((y == c).mean() * entropy(rows[y == c]) for c in np.unique(y))


def by_loop(T: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """One row after the other."""
    digits = np.digitize(T, edges_by_numpy(T)).tolist()

    def entropy(rows: list[tuple[int, ...]]) -> float:
        return -sum(c / len(rows) * math.log2(c / len(rows)) for c in Counter(rows).values())

    rows = [tuple(row) for row in digits]
    h, labels = entropy(rows), y.tolist()
    parts = [[row for row, label in zip(rows, labels, strict=True) if label == c] for c in sorted(set(labels))]
    return h, h - sum(len(part) / len(rows) * entropy(part) for part in parts)


def measure_bins(rows: int, units: int, seconds: float) -> dict[str, Any]:
    T, y = layer(rows, units)
    T_np, y_np = T.numpy(), y.numpy()
    candidates = {
        "ours": lambda: mutual_information(T, y=y, bins=_BINS),
        "numpy": lambda: by_numpy(T_np, y_np),
        "loop": lambda: by_loop(T_np, y_np),
    }
    assert np.allclose(by_numpy(T_np, y_np), mutual_information(T, y=y, bins=_BINS)[:2])
    times = interleaved(candidates, turns=7, seconds=seconds, most=200)
    return {"rows": rows, "units": units, "ms": {name: 1e3 * timing.median for name, timing in times.items()}}


def dense(T: Tensor) -> tuple[Tensor, Tensor]:
    """Both bounds of I(T; X) from the whole matrix of squared distances."""
    distance = torch.cdist(T, T).square()
    return tuple(-torch.exp(distance / (-2.0 * v)).mean(1).log2().mean() for v in (_VARIANCE, 4 * _VARIANCE))  # type: ignore[return-value]


def by_sklearn(T: np.ndarray) -> float:
    """The upper bound alone, by a tree; the tolerance is the one it is usually given for speed."""
    estimate = KernelDensity(bandwidth=_VARIANCE**0.5, rtol=1e-4).fit(T).score_samples(T).mean()
    return float(-(estimate + 0.5 * T.shape[1] * math.log(2 * math.pi * _VARIANCE)) / math.log(2))


def measure_densities(rows: int, units: int, seconds: float) -> dict[str, Any]:
    T, _ = layer(rows, units)
    T = T + 0.1 * torch.randn(T.shape, generator=torch.Generator().manual_seed(1))
    T_np = T.numpy()
    candidates = {
        "ours": lambda: mutual_information(T, estimator="kde", noise=_VARIANCE),
        "dense": lambda: dense(T),
        "sklearn": lambda: by_sklearn(T_np),
    }
    found = mutual_information(T, estimator="kde", noise=_VARIANCE).i_tx
    assert abs(float(dense(T)[0]) - found) < 1e-2 and abs(by_sklearn(T_np) - found) < 1e-2
    times = interleaved(candidates, turns=5, seconds=seconds, most=50)
    return {"rows": rows, "units": units, "ms": {name: 1e3 * timing.median for name, timing in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per row of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sections = {}
    for name, title, measure, shapes in (
        ("bins", "I(T; X) and I(T; Y) by adaptive bins, ms (median)", measure_bins, SHAPES),
        ("densities", "both bounds of I(T; X) by noise, ms (median)", measure_densities, KDE_SHAPES),
    ):
        found = [measure(*shape, options.seconds) for shape in shapes]
        table(title, ["rows", "units", *found[0]["ms"]], [[f["rows"], f["units"], *f["ms"].values()] for f in found])
        sections[name] = found
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-information.json", sections)


if __name__ == "__main__":
    main()
