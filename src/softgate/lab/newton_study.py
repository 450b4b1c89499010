"""Measurements of Newton's method with an adaptive radius: steps, solves, time, and what the structure of H saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from softgate.errors import MissingExtraError
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.tasks import smooth_problems as problems
from softgate.lab.timing import interleaved
from softgate.optim import ChebyshevChain, LogSumExp, Objective, OptimizeResult, Rosenbrock, minimize_gns

__all__ = [
    "measure_banded",
    "measure_log_sum_exp",
    "measure_rank_one",
    "measure_rosenbrock",
    "measure_solvers",
    "measure_sweep",
    "measure_table",
]

Figures = dict[str, Any]
#: A run is over this close to the minimum.
GAP = 1e-8
#: How minimize_gns is called: name -> curvature, rule, whether in the metric of the problem.
METHODS: dict[str, tuple[str, str, bool]] = {
    "exact": ("exact", "adaptive", True),
    "wgn": ("wgn", "adaptive", True),
    "fisher": ("fisher", "adaptive", True),
    "majorizer": ("majorizer", "adaptive", True),
    "normalised": ("none", "adaptive", True),
    "descent-metric": ("none", "gradient_descent", True),
    "descent": ("none", "gradient_descent", False),
    "super-newton": ("exact", "super_newton", True),
}


def _minimize(
    run: CellRun, f: Objective, x0: Tensor, method: str, metric: Tensor | None, f_star: float, most: int
) -> tuple[OptimizeResult, float]:
    """Run to the gap; the result and the seconds it took."""
    curvature, rule, in_metric = METHODS[method]
    steps = 0

    def report(x: Tensor, value: float, norm: float) -> None:
        nonlocal steps
        steps += 1
        if steps % 50 == 0:
            run.log(steps, most, gap=value - f_star)

    started = time.perf_counter()
    found = minimize_gns(
        f, x0, curvature=curvature, rule=rule, metric=metric if in_metric else None, f_star=f_star, ftol=GAP,
        grad_tol=0.0, max_iter=most, callback=report,
    )  # fmt: skip
    return found, time.perf_counter() - started


def _figures(found: OptimizeResult, seconds: float, f_star: float) -> Figures:
    gaps = [max(value - f_star, 1e-16) for value in found.history["fun"]]
    last = len(gaps) - 1
    at = sorted({*range(min(last, 50) + 1), *(round(last ** (k / 60)) for k in range(61)), last})
    return {
        "iterations": float(found.n_iter),
        "solves": float(found.n_solves),
        "seconds": seconds,
        "gap": gaps[-1],
        "steps": [float(k) for k in at],
        "gap_curve": [gaps[k] for k in at],
    }


def measure_log_sum_exp(run: CellRun) -> Figures:
    """One method on one smooth maximum, from x = 1 to a gap of 1e-8."""
    config = run.config
    f, metric, f_star = problems.log_sum_exp_at_zero(config["n"], config["m"], config["mu"], run.seed, run.device)
    x0 = torch.ones_like(f.A[0])
    if config["method"] == "l-bfgs":
        return _scipy_lbfgs(f, x0, f_star, config["most"])
    found, seconds = _minimize(run, f, x0, config["method"], metric, f_star, config["most"])
    return _figures(found, seconds, f_star)


def _scipy_lbfgs(f: LogSumExp, x0: Tensor, f_star: float, most: int) -> Figures:
    """SciPy's L-BFGS-B on the same function, stopped at the same gap."""
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("scipy", "data", "the comparison with L-BFGS") from None
    last, steps = [math.inf], 0

    def fun(x: Any) -> tuple[float, Any]:
        value, grad = f.value_and_grad(torch.from_numpy(x))
        last[0] = float(value)
        return last[0], grad.numpy()

    def stop(x: Any) -> None:
        nonlocal steps
        steps += 1
        if last[0] - f_star <= GAP:
            raise StopIteration

    options = {"maxiter": most, "maxfun": 4 * most, "ftol": 0.0, "gtol": 0.0}
    started = time.perf_counter()
    minimize(fun, x0.numpy(), jac=True, method="L-BFGS-B", callback=stop, options=options)
    return {"iterations": float(steps), "seconds": time.perf_counter() - started, "gap": last[0] - f_star}


def measure_sweep(run: CellRun) -> Figures:
    """Exact Hessians over ever smaller μ: the slope of the steps in 1/μ, and the smallest radius in units of μ."""
    config = run.config
    steps, radii = [], []
    for mu in config["mus"]:
        f, metric, f_star = problems.log_sum_exp_at_zero(config["n"], config["m"], mu, run.seed, run.device)
        x0 = torch.ones_like(f.A[0])
        found, _ = _minimize(run, f, x0, "exact", metric, f_star, config["most"])
        steps.append(float(found.n_iter))
        # from far above, so that the search and not its start decides; a radius is doubled after its step
        wide = minimize_gns(f, x0, metric=metric, gamma0=1e3, f_star=f_star, ftol=GAP, max_iter=config["most"])
        radii.append(min(wide.history["gamma"][1:]) / 2.0 / mu)
    sharpness = [1.0 / mu for mu in config["mus"]]
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sharpness, steps))
    centred = x - x.mean()
    return {
        "sharpness": sharpness,
        "steps_curve": steps,
        "radius_curve": radii,
        "slope": float((centred * y).sum() / centred.square().sum()),
        "radius_spread": max(radii) / min(radii),
        "least_radius": min(radii),
    }


def measure_solvers(run: CellRun) -> Figures:
    """Power of linear residuals with its Gauss-Newton curvature by Cholesky and by Woodbury: the largest difference."""
    config = run.config
    f = problems.power_residual(config["m"], config["n"], config["p"], run.seed, run.device)
    x0, metric = torch.ones_like(f.A[0]), f.metric()
    traces = {
        solver: minimize_gns(f, x0, curvature="ggn", metric=metric, solver=solver, ftol=GAP, f_star=0.0).history["fun"]
        for solver in ("cholesky", "woodbury")
    }
    pairs = list(zip(*traces.values(), strict=False))
    same = len({len(trace) for trace in traces.values()}) == 1
    difference = max(abs(a - b) / abs(a) for a, b in pairs) if same else math.inf
    return {"iterations": float(len(pairs) - 1), "difference": difference, "value": pairs[-1][0]}


def measure_rosenbrock(run: CellRun) -> Figures:
    """Power of Rosenbrock's residuals, Gauss-Newton and Fisher term, from (-1.2, 1)."""
    f, x0 = Rosenbrock(run.config["p"]), torch.tensor([-1.2, 1.0], dtype=torch.float64, device=run.device)
    found = minimize_gns(f, x0, curvature="ggn", max_iter=run.config["most"], f_star=0.0, grad_tol=0.0)
    return {"iterations": float(found.n_iter), "value": found.fun}


def measure_table(run: CellRun) -> Figures:
    """Regression on a table, one curvature, to a gap of 1e-8 from the minimum that exact Hessians find."""
    config = run.config
    f: Any = problems.table_regression(config["table"], config["l2"])
    x0 = torch.zeros(f.dim, dtype=torch.float64)
    f_star = minimize_gns(f, x0, grad_tol=1e-11).fun
    found, seconds = _minimize(run, f, x0, config["method"], None, f_star, config["most"])
    return _figures(found, seconds, f_star)


def _trial_times(candidates: Mapping[str, Callable[[], object]], device: str) -> dict[str, float]:
    return {name: timing.median for name, timing in interleaved(candidates, turns=3, device=device).items()}


def measure_banded(run: CellRun) -> Figures:
    """The Chebyshev chain with its banded curvature, and one of its solves against the matrix written out."""
    config = run.config
    f = ChebyshevChain(config["n"], config["p"])
    draw = torch.rand(config["n"], generator=seeds.generator(run.seed, "chebyshev"), dtype=torch.float64)
    x0 = draw.to(run.device)
    started = time.perf_counter()
    found = minimize_gns(f, x0, curvature="ggn", max_iter=config["most"], grad_tol=0.0, f_star=0.0, ftol=GAP)
    seconds = time.perf_counter() - started
    curvature, rhs = f.curvature("ggn", x0), f.value_and_grad(x0)[1]
    dense = curvature.cholesky()
    times = _trial_times(
        {"banded": lambda: curvature.solve(rhs, 1.0), "dense": lambda: dense.solve(rhs, 1.0)}, run.device
    )
    return {**_figures(found, seconds, 0.0), "speed_up": times["dense"] / times["banded"]}


def measure_rank_one(run: CellRun) -> Figures:
    """The Fisher term of a power of residuals: progress, and one trial by Sherman-Morrison against Cholesky."""
    config = run.config
    f = problems.power_residual(config["m"], config["n"], config["p"], run.seed, run.device)
    x0, metric = torch.ones_like(f.A[0]), f.metric()
    started = time.perf_counter()
    found = minimize_gns(f, x0, curvature="fisher", metric=metric, max_iter=config["most"], grad_tol=0.0, f_star=0.0,
                         ftol=GAP)  # fmt: skip
    seconds = time.perf_counter() - started
    rhs = f.value_and_grad(x0)[1]
    fisher = f.curvature("fisher", x0)
    dense = fisher.cholesky()

    def trials(curvature: Any) -> Callable[[], object]:
        return lambda: [curvature.solve(rhs, lam) for lam in (1.0, 2.0)]

    times = _trial_times({"rank one": trials(fisher), "dense": trials(dense)}, run.device)
    return {**_figures(found, seconds, 0.0), "speed_up": times["dense"] / times["rank one"]}
