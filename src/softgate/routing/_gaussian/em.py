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
#: A gate step is quartered at most six times.
SMALLEST_STEP = 0.5**12
#: A learned temperature stays between exp(-30) and exp(30): beyond, the gate is even or picks one expert.
LARGEST_LOG_TEMPERATURE = 30.0
#: Eigenvalues of a matrix with unit diagonal that are smaller count as this large: the data do not determine the
#: direction, and rounding must not decide in their place.
SMALLEST_EIGENVALUE = 1e-8
#: Added to the gate's information, in nats per squared unit. Where less is known, as when the gate already separates
#: the samples, a full step would gain about that little and be made of rounding.
GATE_DAMPING = 1e-6

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
    gate, which is shortened until the observed log-likelihood does not fall. The pass that shows it is the next one's.

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
    converged, factor = False, 1.0
    while len(history) <= max_iter and not converged:
        moved = solve_experts(state, sums, var_floor)
        if needs_newton:
            state, sums, factor = _with_newton_step(likelihood, state, moved, sums, factor)
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
        experts[i] = theta = solve_symmetric(normal, right)
        rss = square - 2 * theta @ right + theta @ normal @ theta
        var[i] = max(rss / share, var_floor)
    return replace(state, experts=experts, var=var)


def solve_symmetric(matrix: Array, right: Array) -> Array:
    """Solution of ``matrix · z = right`` for a semidefinite matrix, damped where the matrix is singular.

    Exact, after scaling the diagonal to 1, along eigenvectors with eigenvalues above ``SMALLEST_EIGENVALUE``. Constant
    features and directions without data (fewer samples than features) get 0.
    """
    diagonal = np.sqrt(np.diag(matrix))
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)
    values, vectors = np.linalg.eigh(matrix * scale * scale[:, None])
    along = (vectors.T @ (right * scale)) / np.maximum(values, SMALLEST_EIGENVALUE)
    return np.asarray(scale * (vectors @ along))


def move_gate(state: State, step: Array) -> State:
    """``state`` with ``step`` added to the fitted rows of the gate and, if it is longer, to the log temperature."""
    gate = state.gate.copy()
    rows = gate[:-1].size
    gate[:-1] += step[:rows].reshape(gate[:-1].shape)
    log_temperature = state.log_temperature + float(step[rows:].sum())
    limit = LARGEST_LOG_TEMPERATURE
    return replace(state, gate=gate, log_temperature=min(max(log_temperature, -limit), limit))


def _with_newton_step(
    likelihood: Likelihood, state: State, moved: State, sums: Sums, factor: float
) -> tuple[State, Sums, float]:
    """``moved`` (the experts) with a part of the gate's step that does not lower the log-likelihood.

    Begins with ``factor`` of the step and quarters it; returns the factor that the next step may begin with. Where a
    sparse gate keeps refusing long steps (its likelihood jumps), they are not all tried again in every iteration.
    """
    assert sums.information is not None
    damping = GATE_DAMPING * np.eye(len(sums.gradient))
    step = solve_symmetric(sums.information + damping, sums.gradient)
    next_factor = min(1.0, 2 * factor)
    while factor >= SMALLEST_STEP and step.any():
        candidate = move_gate(moved, factor * step)
        after = likelihood.sums(candidate, information=True)
        if after.log_likelihood >= sums.log_likelihood:
            return candidate, after, next_factor
        factor /= 4
        next_factor = factor
    # the experts alone: their step is EM's own and cannot lower the likelihood, but for rounding
    after = likelihood.sums(moved, information=True)
    if after.log_likelihood >= sums.log_likelihood:
        return moved, after, SMALLEST_STEP
    return state, sums, SMALLEST_STEP


def _accept_if_better(likelihood: Likelihood, state: State, sums: Sums, moved: State | None) -> tuple[State, Sums]:
    if moved is None:
        return state, sums
    after = likelihood.sums(moved)
    return (moved, after) if after.log_likelihood > sums.log_likelihood else (state, sums)
