"""Expectation-maximisation whose log-likelihood never falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from softgate.routing._gaussian.likelihood import Likelihood, Sums
from softgate.routing._gaussian.state import Array, State

__all__: list[str] = []

#: An expert with less responsibility than this (in samples) keeps its parameters.
SMALLEST_SHARE = 1e-3
#: Ridge of the weighted least squares, as a fraction of the trace of the normal matrix.
RIDGE = 1e-10
HALVINGS = 12
#: Directions of the gate with less than this share of the largest information are not moved along.
RANK_TOLERANCE = 1e-12

#: Proposes another state, given the present one and its sums; None if it has nothing better.
Proposal = Callable[[State, Sums], State | None]


@dataclass(frozen=True)
class Fit:
    """Where a fit ended.

    Attributes:
        state: the parameters.
        history: log-likelihood after every iteration, beginning with the start.
        converged: False if the iterations ran out.
        shares: (k,) responsibility of each expert, in samples.
    """

    state: State
    history: tuple[float, ...]
    converged: bool
    shares: Array


def run_em(
    likelihood: Likelihood,
    state: State,
    *,
    max_iter: int,
    tol: float,
    var_floor: float,
    propose_gate: Proposal | None = None,
) -> Fit:
    """Iterate until the log-likelihood gains less than ``tol``.

    From the responsibilities of one pass over the data come both the experts (in closed form) and a Newton step of the
    gate, which is halved until the observed log-likelihood does not fall. The pass that shows it is the next one's.

    Args:
        likelihood: the data.
        state: start.
        max_iter: most iterations.
        tol: smallest gain that counts, in nats.
        var_floor: smallest variance, in the units of the state.
        propose_gate: replaces the Newton step of the gate.
    """
    needs_newton = propose_gate is None and len(state.gate) > 1
    sums = likelihood.sums(state, information=needs_newton)
    history = [sums.log_likelihood]
    converged = False
    while len(history) <= max_iter and not converged:
        moved = solve_experts(state, sums, var_floor)
        if needs_newton:
            state, sums = _with_newton_step(likelihood, state, moved, sums)
        else:
            state, sums = _accept_if_better(likelihood, state, sums, moved)
        if propose_gate is not None:
            state, sums = _accept_if_better(likelihood, state, sums, propose_gate(state, sums))
        history.append(sums.log_likelihood)
        converged = history[-1] - history[-2] < tol
    return Fit(state, tuple(history), converged, sums.gram[:, 0, 0])


def solve_experts(state: State, sums: Sums, var_floor: float) -> State:
    """``state`` with every expert at its weighted least squares and residual variance, from the gram matrices."""
    experts, var = state.experts.copy(), state.var.copy()
    for i, gram in enumerate(sums.gram):
        share = gram[0, 0]
        if share < SMALLEST_SHARE:
            continue
        normal, right, square = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
        ridge = RIDGE * np.trace(normal) * np.eye(len(normal))
        experts[i] = theta = np.linalg.solve(normal + ridge, right)
        rss = square - 2 * theta @ right + theta @ normal @ theta
        var[i] = max(rss / share, var_floor)
    return replace(state, experts=experts, var=var)


def newton_direction(gradient: Array, information: Array) -> Array:
    """``information⁺ gradient`` with a scaled diagonal, nothing along directions that the data do not determine."""
    diagonal = np.sqrt(np.diag(information))
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    values, vectors = np.linalg.eigh(information * scale * scale[:, None])
    keep = values > RANK_TOLERANCE * max(float(values[-1]), 0.0)
    along = (vectors.T @ (gradient * scale))[keep] / values[keep]
    return np.asarray(scale * (vectors[:, keep] @ along))


def move_gate(state: State, step: Array) -> State:
    """``state`` with ``step`` added to the fitted rows of the gate and, if it is longer, to the log temperature."""
    gate = state.gate.copy()
    rows = gate[:-1].size
    gate[:-1] += step[:rows].reshape(gate[:-1].shape)
    return replace(state, gate=gate, log_temperature=state.log_temperature + float(step[rows:].sum()))


def _with_newton_step(likelihood: Likelihood, state: State, moved: State, sums: Sums) -> tuple[State, Sums]:
    """``moved`` (the experts) with the longest of the halved gate steps that does not lower the log-likelihood."""
    assert sums.information is not None
    step = newton_direction(sums.gradient, sums.information)
    for halving in range(HALVINGS + 2):
        # at last the experts alone; their step is EM's own and cannot lower the likelihood, but for rounding
        factor = 0.5**halving if halving <= HALVINGS and step.any() else 0.0
        candidate = move_gate(moved, factor * step)
        after = likelihood.sums(candidate, information=True)
        if after.log_likelihood >= sums.log_likelihood:
            return candidate, after
        if factor == 0.0:
            break
    return state, sums


def _accept_if_better(likelihood: Likelihood, state: State, sums: Sums, moved: State | None) -> tuple[State, Sums]:
    if moved is None:
        return state, sums
    after = likelihood.sums(moved)
    return (moved, after) if after.log_likelihood > sums.log_likelihood else (state, sums)
