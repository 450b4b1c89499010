"""Maximise the log-likelihood directly, by L-BFGS over all parameters at once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from softgate.routing._gaussian.em import Fit, move_gate
from softgate.routing._gaussian.likelihood import Likelihood, Sums
from softgate.routing._gaussian.state import Array, State

__all__: list[str] = []

#: History, and largest entry of the gradient of the mean log-likelihood at the end.
MEMORY = 20
GRADIENT_TOLERANCE = 1e-10


def run_lbfgs(likelihood: Likelihood, state: State, *, max_iter: int, tol: float, var_floor: float) -> Fit:
    """L-BFGS on the mean log-likelihood over gate, log temperature, experts and log variances.

    Variances are kept above ``var_floor`` by a bound. Ends when an iteration gains less than ``tol`` nats.
    """
    from scipy.optimize import Bounds, minimize

    free = state.gate[:-1].size + likelihood.learn_temperature
    start = np.concatenate([np.zeros(free), state.experts.ravel(), np.log(state.var)])
    low = np.full(len(start), -np.inf)
    low[-len(state.var) :] = math.log(var_floor)
    best: list[tuple[float, State, Sums]] = []
    history: list[float] = []

    def negative_mean(packed: Array) -> tuple[float, Array]:
        here = _unpack(packed, state, free)
        sums = likelihood.sums(here)
        if not best or sums.log_likelihood > best[0][0]:
            best[:] = [(sums.log_likelihood, here, sums)]
        return -sums.log_likelihood / likelihood.total, -_gradient(here, sums) / likelihood.total

    def note(_: Array) -> None:
        history.append(best[0][0])

    scale = max(abs(negative_mean(start)[0]), 1.0) * likelihood.total
    history.append(best[0][0])
    options = {"maxcor": MEMORY, "maxiter": max_iter, "maxfun": 20 * max_iter, "gtol": GRADIENT_TOLERANCE}
    result = minimize(
        negative_mean,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(low, np.inf),
        callback=note,
        options={**options, "ftol": tol / scale},
    )
    value, state, sums = best[0]
    if history[-1] < value:
        history.append(value)
    return Fit(state, tuple(history), bool(result.status != 1), sums.gram[:, 0, 0])


def _unpack(packed: Array, start: State, free: int) -> State:
    """The state that ``packed`` stands for: a step of the gate from ``start``, experts, log variances."""
    k, q = start.gate.shape
    moved = move_gate(start, packed[:free])
    return replace(moved, experts=packed[free:-k].reshape(k, q).copy(), var=np.exp(packed[-k:]))


def _gradient(state: State, sums: Sums) -> Array:
    """Derivative of the log-likelihood by the packed parameters; the experts' part follows from the gram matrices."""
    normal, right, square = sums.gram[:, :-1, :-1], sums.gram[:, :-1, -1], sums.gram[:, -1, -1]
    fitted = np.einsum("kij,kj->ki", normal, state.experts)
    by_experts = (right - fitted) / state.var[:, None]
    rss = square - np.einsum("ki,ki->k", state.experts, 2 * right - fitted)
    by_log_var = 0.5 * (rss / state.var - sums.gram[:, 0, 0])
    return np.concatenate([sums.gradient, by_experts.ravel(), by_log_var])
