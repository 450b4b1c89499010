"""Fitting a Gaussian mixture of experts: one EM iteration and a whole fit, beside plain numpy and what memory allows.

    python benchmarks/gaussian_moe.py [--samples N] [--seconds S] [--out DIR]

One core, float64, candidates in turns. Figures go to DIR/benchmark-gaussian_moe.json.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from _timing import CONSOLE, table, write_record
from softgate.lab.timing import interleaved, load_per_core
from softgate.routing import GaussianMoE, MixingMeasure
from softgate.routing._gaussian.em import run_em
from softgate.routing._gaussian.likelihood import Likelihood
from softgate.routing._gaussian.state import Frame
from softgate.routing._gaussian.threads import one_blas_thread

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
TRUTH = {
    2: MixingMeasure([-8, 0], [25, 0], [-20, 20], [15, -5], [0.09, 0.16]),
    3: MixingMeasure([-8, 1, 0], [25, 5, 0], [-20, 5, 20], [15, 2, -5], [0.09, 0.2, 0.16]),
}


def plain_iteration(x: np.ndarray, y: np.ndarray, measure: MixingMeasure) -> MixingMeasure:
    """The same iteration as one would write it: whole (n, k) arrays, a step of the gate, the likelihood at its end."""
    k, top_k = measure.n_experts, measure.top_k or measure.n_experts

    def gate_of(beta: np.ndarray) -> np.ndarray:
        logits = np.outer(np.ones(len(x)), beta[:, 0]) + x @ beta[:, 1:].T
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        kept = np.full_like(logits, -np.inf)
        np.put_along_axis(kept, order, np.take_along_axis(logits, order, 1), 1)
        weights = np.exp(kept - kept.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def joint(gate: np.ndarray, a: np.ndarray, b: np.ndarray, var: np.ndarray) -> np.ndarray:
        residual = y[:, None] - (x @ a.T + b)
        return gate * np.exp(-0.5 * residual**2 / var) / np.sqrt(2 * np.pi * var)

    beta = np.column_stack([measure.beta0, measure.beta1])
    w = gate_of(beta)
    p = joint(w, measure.a, measure.b, measure.var)
    r = p / p.sum(1, keepdims=True)
    design = np.column_stack([np.ones(len(x)), x])
    experts, var = np.empty((k, design.shape[1])), np.empty(k)
    for i in range(k):
        weighted = design * r[:, i : i + 1]
        experts[i] = np.linalg.solve(weighted.T @ design, weighted.T @ y)
        var[i] = (r[:, i] * (y - design @ experts[i]) ** 2).sum() / r[:, i].sum()
    gradient = ((r - w).T @ design)[:-1].ravel()
    q = design.shape[1]
    information = np.empty((len(gradient), len(gradient)))
    for i in range(k - 1):
        for j in range(k - 1):
            curvature = w[:, i] * ((i == j) - w[:, j])
            information[i * q : (i + 1) * q, j * q : (j + 1) * q] = (design * curvature[:, None]).T @ design
    moved = beta.copy()
    moved[:-1] += np.linalg.solve(information + 1e-8 * np.eye(len(gradient)), gradient).reshape(k - 1, q)
    np.log(joint(gate_of(moved), experts[:, 1:], experts[:, 0], var).sum(1)).sum()
    return measure.with_options(beta0=moved[:, 0], beta1=moved[:, 1:], a=experts[:, 1:], b=experts[:, 0], var=var)


def limits(n: int, k: int) -> dict[str, Any]:
    """What an iteration cannot beat: its traffic if nothing stayed in the cache, its products, its exponentials."""
    reads = np.random.default_rng(0).normal(size=(10, n * k))
    values = torch.from_numpy(reads[0])
    left, right = reads[0].reshape(k, n).repeat(3, 0), reads[1][: 3 * n].reshape(3, n) if k >= 3 else reads[:3, :n]
    out = torch.empty_like(values)
    return {
        "10 passes over n·k doubles": lambda: reads.sum(),
        "the matrix products": lambda: (left @ right.T, left[: 2 * (k - 1)] @ left[: 2 * (k - 1)].T),
        "2 n·k exponentials": lambda: (torch.exp(values, out=out), torch.exp(values, out=out)),
    }


def iterations(n: int, k: int, top_k: int | None, seconds: float) -> dict[str, Any]:
    truth = TRUTH[k].with_options(top_k=top_k)
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(n, 1))
    y = truth.sample(x, rng)
    frame = Frame.of(x, y, np.ones(n), centred=True)
    likelihood = Likelihood(x, y, None, frame, top_k=top_k)
    state = frame.enter(truth)

    candidates = {
        "start + 11 iterations": lambda: run_em(likelihood, state, max_iter=11, tol=-np.inf, var_floor=1e-6),
        "plain numpy": lambda: plain_iteration(x, y, truth),
        **limits(n, k),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=50)
    ms = {name: 1e3 * timing.best for name, timing in times.items()}
    # the start costs a pass over the data, and so does every iteration whose first gate step is accepted
    ms["one iteration"] = ms.pop("start + 11 iterations") / 12
    return {"n": n, "k": k, "top_k": top_k, "ms": ms, "plain / ours": ms["plain numpy"] / ms["one iteration"]}


def fits(n: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(n, 1))
    y = TRUTH[2].sample(x, rng)
    points = np.column_stack([x, y])

    model = GaussianMoE(2).fit(x, y)
    candidates = {
        "fit": lambda: GaussianMoE(2).fit(x, y),
        "fit from the truth": lambda: GaussianMoE(2, init=TRUTH[2]).fit(x, y),
        "sklearn GaussianMixture on (x, y)": lambda: GaussianMixture(2, random_state=0).fit(points),
    }
    times = interleaved(candidates, turns=5, seconds=seconds, most=10)
    ms = {name: 1e3 * timing.best for name, timing in times.items()}
    return {"n": n, "k": 2, "iterations": model.n_iter_, "ms": ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="per row of the tables")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with one_blas_thread():
        rows = [iterations(options.samples, k, top_k, options.seconds) for k, top_k in ((2, None), (3, None), (3, 2))]
        whole = fits(options.samples, options.seconds)
    header = ["n", "k", "top_k", *rows[0]["ms"], "plain / ours"]
    lines = [[r["n"], r["k"], r["top_k"], *r["ms"].values(), r["plain / ours"]] for r in rows]
    table("one EM iteration, ms", header, lines)
    line = [whole["n"], whole["iterations"], *whole["ms"].values()]
    table("a whole fit, ms", ["n", "iterations", *whole["ms"]], [line])
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    write_record(options.out / "benchmark-gaussian_moe.json", {"iteration": rows, "fit": whole})


if __name__ == "__main__":
    main()
