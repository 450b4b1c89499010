"""OrthoGrad on top of AdamW; optimistic mirror descent beside torch's optimizers; Hedge; best-response layers.

And Newton steps with an adaptive radius beside SciPy's minimizers and scikit-learn's solvers, to the same tolerance.

    python benchmarks/optim.py [--seconds S] [--out DIR]

One thread, candidates in turns. Figures go to DIR/benchmark-optim.json.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from _timing import CONSOLE, table, write_record
from softgate.lab.tasks.smooth_problems import log_sum_exp_at_zero, power_residual
from softgate.lab.timing import interleaved, load_per_core
from softgate.optim import (
    BestResponseLinear,
    BestResponseLSTM,
    GNSLogisticRegression,
    LogSumExp,
    OptimisticHedge,
    OptimisticMirrorDescent,
    minimize_gns,
    project_orthogonal_,
)

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
MODELS = {
    "MLP 226-200-200-113": [(200, 226), (200, 200), (113, 200)],
    "20 layers of 256": [(256, 256), (256,)] * 20,
    "12 matrices of 1024": [(1024, 1024)] * 12,
}
#: Streams and experts of a batch.
EXPERTS = ((1024, 256), (64, 16))
#: Variables, affine functions and smoothing of smooth maxima.
MAXIMA = ((100, 300, 0.1), (100, 300, 0.05), (200, 600, 0.05))
#: Samples, features and classes of logistic regressions.
REGRESSIONS = ((569, 30, 2), (20_000, 50, 2), (2000, 64, 10))
#: Rows and columns of low-rank curvatures.
CURVATURES = ((200, 2000),)
GAP = 1e-8
#: Peers of SciPy, and which of them take a Hessian.
PEERS = {"trust-exact": True, "trust-ncg": True, "Newton-CG": True, "L-BFGS-B": False}
#: Rows and features of a best-response layer; steps, rows and units of an LSTM; hyper-parameters.
RESPONSES, RECURRENT, HYPER = ((128, 1024),), ((35, 20, 200),), 7


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


def measure_mirror(name: str, shapes: Sequence[tuple[int, ...]], seconds: float) -> dict[str, Any]:
    """One step; the peer that does the nearest thing keeps one vector too: SGD with momentum."""
    candidates = {
        "constant": OptimisticMirrorDescent(weights(shapes), lr=1e-6).step,
        "sea": OptimisticMirrorDescent(weights(shapes), lr="sea", diameter=1e-6).step,
        "sgd_momentum": torch.optim.SGD(weights(shapes), lr=1e-6, momentum=0.9, foreach=True).step,
        "sgd_momentum_fused": torch.optim.SGD(weights(shapes), lr=1e-6, momentum=0.9, fused=True).step,
        "adamw_fused": torch.optim.AdamW(weights(shapes), lr=1e-6, fused=True).step,
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=400)
    return {
        "model": name,
        "parameters": sum(w.numel() for w in weights(shapes)),
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
    }


def measure_hedge(streams: int, experts: int, seconds: float) -> dict[str, Any]:
    """One round of all streams, prediction and update."""
    losses = torch.randn(streams, experts, generator=torch.Generator().manual_seed(0))

    def rounds(eta: float | str) -> Any:
        hedge = OptimisticHedge(experts, eta, batch_shape=(streams,), dtype=torch.float32)

        def one() -> None:
            hedge.predict()
            hedge.update(losses)

        return one

    candidates = {
        "constant": rounds(0.1),
        "auto": rounds("auto"),
        "log_softmax": lambda: torch.log_softmax(losses, -1),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=2000)
    ms = {candidate: 1e3 * timing.median for candidate, timing in times.items()}
    return {"streams": streams, "experts": experts, "ms": ms}


class Reached(Exception):
    """The gap is closed: raised by the function itself, the earliest moment."""


def scipy_run(f: LogSumExp, f_star: float, name: str) -> Callable[[], dict[str, float]]:
    """SciPy's ``name`` on the same function in NumPy, until the gap is closed or it gives up."""
    from scipy.optimize import minimize

    A, b, mu = f.A.numpy(), f.b.numpy(), f.mu

    def probabilities(x: Any) -> tuple[float, Any]:
        logits = (A @ x - b) / mu
        top = logits.max()
        weights = np.exp(logits - top)
        return mu * (top + np.log(weights.sum())), weights / weights.sum()

    def hessian(x: Any) -> Any:
        pi = probabilities(x)[1]
        rows = A - A.T @ pi
        return (rows.T * pi) @ rows / mu

    def run() -> dict[str, float]:
        best, calls = np.inf, 0

        def fun(x: Any) -> tuple[float, Any]:
            nonlocal best, calls
            value, pi = probabilities(x)
            best, calls = min(best, value), calls + 1
            if value - f_star <= GAP:
                raise Reached
            return value, A.T @ pi

        options = {"maxiter": 20_000, **({} if PEERS[name] else {"maxfun": 20_000, "ftol": 0.0, "gtol": 0.0})}
        options |= {"gtol": 1e-12} if name.startswith("trust") else {}
        more = {"hess": hessian} if PEERS[name] else {}
        with contextlib.suppress(Reached):
            minimize(fun, np.ones(A.shape[1]), jac=True, method=name, options=options, **more)
        return {"gap": float(best - f_star), "calls": calls}

    return run


def measure_maximum(n: int, m: int, mu: float, seconds: float) -> dict[str, Any]:
    """From x = 1 to a gap of 1e-8 from the known minimum."""
    f, metric, f_star = log_sum_exp_at_zero(n, m, mu, 0)
    x0 = torch.ones(n, dtype=torch.float64)

    def ours(curvature: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            found = minimize_gns(f, x0, curvature=curvature, metric=metric, f_star=f_star, ftol=GAP, grad_tol=0.0)
            return {"gap": found.fun - f_star, "calls": found.n_fev}

        return run

    candidates = {"exact": ours("exact"), "wgn": ours("wgn"), **{name: scipy_run(f, f_star, name) for name in PEERS}}
    reached = {name: run() for name, run in candidates.items()}
    times = interleaved(candidates, turns=3, seconds=seconds, most=50)
    return {
        "n": n, "m": m, "mu": mu, "ms": {name: 1e3 * timing.median for name, timing in times.items()},
        "gap": {name: r["gap"] for name, r in reached.items()},
        "evaluations": {name: r["calls"] for name, r in reached.items()},
    }  # fmt: skip


def measure_regression(samples: int, features: int, classes: int, seconds: float) -> dict[str, Any]:
    """A whole fit, C = 1, all solvers to a gradient of 1e-6."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    X = generator.normal(size=(samples, features))
    y = (X @ generator.normal(size=(features, classes)) + 2.0 * generator.normal(size=(samples, classes))).argmax(1)
    options: dict[str, Any] = {"tol": 1e-6, "max_iter": 1000}
    candidates = {
        "ours": lambda: GNSLogisticRegression(**options).fit(X, y),
        "newton-cholesky": lambda: LogisticRegression(solver="newton-cholesky", **options).fit(X, y),
        "lbfgs": lambda: LogisticRegression(solver="lbfgs", **options).fit(X, y),
    }
    times = interleaved(candidates, turns=3, seconds=seconds, most=50)
    ms = {candidate: 1e3 * timing.median for candidate, timing in times.items()}
    return {"samples": samples, "features": features, "classes": classes, "ms": ms}


def measure_trial(rows: int, columns: int, seconds: float) -> dict[str, Any]:
    """One trial, a solve with a λ of its own; what holds for every λ is there already."""
    f = power_residual(rows, columns, 4.0, 0)
    x = torch.ones(columns, dtype=torch.float64)
    rhs, low_rank, fisher = f.value_and_grad(x)[1], f.curvature("ggn", x), f.curvature("fisher", x)
    woodbury, dense = low_rank.woodbury(), low_rank.cholesky()
    candidates = {
        "woodbury": lambda: woodbury.solve(rhs, 1.0),
        "rank one": lambda: fisher.solve(rhs, 1.0),
        "cholesky": lambda: dense.solve(rhs, 1.0),
    }
    times = interleaved(candidates, turns=5, seconds=seconds, most=200)
    return {"rows": rows, "columns": columns, "ms": {name: 1e3 * timing.median for name, timing in times.items()}}


def measure_response(rows: int, features: int, seconds: float) -> dict[str, Any]:
    """Forward and backward; the peer is one plain layer with as many weights."""
    x, lam = torch.randn(rows, features), torch.randn(rows, HYPER)
    ours, plain = BestResponseLinear(features, features, HYPER), torch.nn.Linear(features, 2 * features)
    single = torch.nn.Linear(features, features)
    candidates = {
        "response": lambda: ours(x, lam).sum().backward(),
        "linear_twice_as_wide": lambda: plain(x).sum().backward(),
        "linear": lambda: single(x).sum().backward(),
    }
    times = interleaved(candidates, turns=9, seconds=seconds, most=200)
    return {
        "rows": rows,
        "features": features,
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
    }


def _loop(net: BestResponseLSTM, x: Tensor, lam: Tensor) -> Tensor:
    """Every step and every product by itself, as the authors' cell does."""
    i2h, h2h = net.i2h[0], net.h2h[0]
    h = c = torch.zeros(x.shape[1], h2h.in_features)
    outputs = []
    for step in x:
        total: Any = 0.0
        for layer, value in ((i2h, step), (h2h, h)):
            (w, v), (b, d), gate = layer.weights.chunk(2), layer.biases.chunk(2), lam @ layer.gates.T
            of_weight, of_bias = gate.chunk(2, 1)
            total = total + (value @ w.T + b) + of_weight * (value @ v.T) + of_bias * d
        forget, write, out, candidate = total.chunk(4, 1)
        c = forget.sigmoid() * c + write.sigmoid() * candidate.tanh()
        h = out.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def measure_recurrent(steps: int, rows: int, units: int, seconds: float) -> dict[str, Any]:
    """Forward and backward of one layer over a sequence."""
    net, x, lam = BestResponseLSTM(units, units, 1, HYPER), torch.randn(steps, rows, units), torch.randn(rows, HYPER)
    plain = torch.nn.LSTM(units, units)
    assert torch.allclose(_loop(net, x, lam), net(x, lam=lam)[0], atol=1e-4)
    candidates = {
        "response": lambda: net(x, lam=lam)[0].sum().backward(),
        "loop": lambda: _loop(net, x, lam).sum().backward(),
        "lstm": lambda: plain(x)[0].sum().backward(),
    }
    times = interleaved(candidates, turns=7, seconds=seconds, most=100)
    return {
        "steps": steps,
        "rows": rows,
        "units": units,
        "ms": {candidate: 1e3 * timing.median for candidate, timing in times.items()},
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
    mirror = [measure_mirror(name, shapes, options.seconds) for name, shapes in MODELS.items()]
    header = ["model", "parameters", *mirror[0]["ms"]]
    table("one step, ms (median)", header, [[m["model"], m["parameters"], *m["ms"].values()] for m in mirror])
    hedge = [measure_hedge(*size, options.seconds) for size in EXPERTS]
    header = ["streams", "experts", *hedge[0]["ms"]]
    table("one round, ms (median)", header, [[h["streams"], h["experts"], *h["ms"].values()] for h in hedge])
    maxima = [measure_maximum(*size, options.seconds) for size in MAXIMA]
    header = ["n", "m", "mu", *maxima[0]["ms"]]
    table(
        "smooth maximum to 1e-8, ms (median)",
        header,
        [[*(r[h] for h in header[:3]), *r["ms"].values()] for r in maxima],
    )
    fits = [measure_regression(*size, options.seconds) for size in REGRESSIONS]
    header = ["samples", "features", "classes", *fits[0]["ms"]]
    table("logistic regression, ms (median)", header, [[*(r[h] for h in header[:3]), *r["ms"].values()] for r in fits])
    trials = [measure_trial(*size, options.seconds) for size in CURVATURES]
    header = ["rows", "columns", *trials[0]["ms"]]
    table("one trial, ms (median)", header, [[*(r[h] for h in header[:2]), *r["ms"].values()] for r in trials])
    response = [measure_response(*size, options.seconds) for size in RESPONSES]
    recurrent = [measure_recurrent(*size, options.seconds) for size in RECURRENT]
    for title, rows in (("best-response layer", response), ("best-response LSTM", recurrent)):
        header = [*(key for key in rows[0] if key != "ms"), *rows[0]["ms"]]
        lines = [[*(v for k, v in row.items() if k != "ms"), *row["ms"].values()] for row in rows]
        table(f"{title}, forward and backward, ms (median)", header, lines)
    CONSOLE.print(f"load per core {load_per_core():.2f}")
    sections = {
        "orthograd": found,
        "mirror_descent": mirror,
        "hedge": hedge,
        "gns_maximum": maxima,
        "gns_regression": fits,
        "gns_trial": trials,
        "response": response,
        "recurrent": recurrent,
    }
    write_record(options.out / "benchmark-optim.json", sections)


if __name__ == "__main__":
    main()
