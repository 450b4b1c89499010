"""Gates that select one expert on the line: the best boundaries, by prefix sums over the sorted inputs.

With one selected expert the likelihood does not change under small moves of the gate, so no gradient finds the
boundaries; a search over all places between two neighbouring samples does.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from softgate.routing._gaussian.likelihood import Likelihood, Sums
from softgate.routing._gaussian.state import Array, State

__all__: list[str] = []

#: Keeps the lines of segments whose inputs are all equal flat, as a fraction of the trace of the normal matrix.
RIDGE = 1e-10
#: A segment of two experts holds at least this many samples: with fewer, a line fits exactly.
SMALLEST_SEGMENT = 3


class SegmentSearch:
    """Proposes gates for one-dimensional data of which the gate selects one expert.

    For two experts boundary and experts are searched jointly, which is the maximum-likelihood estimate. For more the
    boundaries are the best ones for the present experts, in the order in which the gate has them now.
    """

    def __init__(self, likelihood: Likelihood, var_floor: float) -> None:
        rows, weight = likelihood.rows, likelihood.weight
        order = np.argsort(rows[1], kind="stable")
        self.rows = rows[:, order]
        self.weight = np.ones(len(order)) if weight is None else weight[order]
        self.var_floor = var_floor
        x = self.rows[1]
        #: places[s] says whether a boundary may stand before sample s
        self.places = np.concatenate([[True], x[1:] > x[:-1], [True]])
        self.between = np.concatenate([[x[0] - 1], (x[1:] + x[:-1]) / 2, [x[-1] + 1]])

    def __call__(self, state: State, sums: Sums) -> State | None:
        """Another state to try, None if there is no place for a boundary."""
        order = np.argsort(state.gate[:, 1], kind="stable")
        if len(order) == 2:
            return self._two(state, order)
        return self._several(state, order)

    def _two(self, state: State, order: NDArray[np.intp]) -> State | None:
        one, x, y = self.rows
        features = np.stack([one, x, x * x, y, x * y, y * y]) * self.weight
        left = np.concatenate([np.zeros((6, 1)), features.cumsum(1)], 1)
        right = left[:, -1:] - left
        counts = np.concatenate([[0], (self.weight > 0).cumsum()])
        enough = (counts >= SMALLEST_SEGMENT) & (counts[-1] - counts >= SMALLEST_SEGMENT)
        allowed = self.places & enough
        if not allowed.any():
            return None
        sides = [_fit_lines(moments, self.var_floor) for moments in (left, right)]
        total = np.where(allowed, sides[0][0] + sides[1][0], -np.inf)
        at = int(total.argmax())
        experts, var = state.experts.copy(), state.var.copy()
        for expert, (_, line, variance) in zip(order, sides, strict=True):
            experts[expert], var[expert] = line[:, at], variance[at]
        gate = _gate_with(state.gate, order, self.between[[at]])
        return replace(state, gate=gate, experts=experts, var=var)

    def _several(self, state: State, order: NDArray[np.intp]) -> State:
        z, y = self.rows[:-1], self.rows[-1]
        residual = (state.experts[order] @ z - y) ** 2
        density = -0.5 * (residual / state.var[order, None] + np.log(state.var[order, None]))
        prefix = np.concatenate([np.zeros((len(order), 1)), (density * self.weight).cumsum(1)], 1)
        # best[t]: largest log-likelihood of the first t samples with the experts so far; begin[j][t]: where j begins
        best, begin = prefix[0], []
        for expert in prefix[1:]:
            gain = np.where(self.places, best - expert, -np.inf)
            running = np.maximum.accumulate(gain)
            first = np.where(gain == running, np.arange(len(gain)), 0)
            begin.append(np.maximum.accumulate(first))
            best = expert + running
        cuts, at = [], len(best) - 1
        for starts in reversed(begin):
            at = int(starts[at])
            cuts.append(at)
        return replace(state, gate=_gate_with(state.gate, order, self.between[cuts[::-1]]))


def _fit_lines(moments: Array, var_floor: float) -> tuple[Array, Array, Array]:
    """Least squares on every prefix: log-likelihood (S,), (intercept, slope) (2, S), variance (S,)."""
    n, sx, sxx, sy, sxy, syy = moments
    ridge = RIDGE * (n + sxx)
    a11, a22 = n + ridge, sxx + ridge
    determinant = np.maximum(a11 * a22 - sx * sx, np.finfo(float).tiny)
    intercept = (a22 * sy - sx * sxy) / determinant
    slope = (a11 * sxy - sx * sy) / determinant
    rss = syy - 2 * (intercept * sy + slope * sxy) + intercept**2 * n + 2 * intercept * slope * sx + slope**2 * sxx
    count = np.maximum(n, np.finfo(float).tiny)
    var = np.maximum(rss / count, var_floor)
    return -0.5 * (n * np.log(2 * math.pi * var) + rss / var), np.stack([intercept, slope]), var


def _gate_with(gate: Array, order: NDArray[np.intp], boundaries: Array) -> Array:
    """Biases such that the experts in ``order`` of their slopes meet at ``boundaries``; the last row stays pinned."""
    slopes = gate[order, 1].copy()
    if (np.diff(slopes) <= 0).any():  # equal slopes have no boundary
        slopes = np.arange(len(order), dtype=float)
    steps = np.concatenate([[0.0], np.cumsum(np.diff(slopes) * boundaries)])
    moved = np.empty_like(gate)
    moved[order] = np.column_stack([-steps, slopes])
    return np.asarray(moved - moved[-1] + gate[-1])
