"""The log-likelihood and the sums over the data that every fitting step needs, in one blocked pass.

Nothing of size n·k is kept: a block of a few thousand samples stays in the cache from its logits to its share of the
sums. Names end in their axes: N samples of the block, K experts, Q = 1 + d coordinates of an affine function.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from softgate.routing._activations import Activation, activation_of
from softgate.routing._gaussian.state import Array, Frame, State

__all__: list[str] = []

BLOCK = 8192


class Sums(NamedTuple):
    """What one pass over the data gives.

    Attributes:
        log_likelihood: Σ_n log p(y_n|x_n), in the units of the data.
        gram: (k, q + 1, q + 1) Σ_n r_ni (1, x, y)(1, x, y)ᵀ, r the responsibilities.
        gradient: (m,) derivative of the log-likelihood by what is fitted of the gate: its rows but the last (which is
            pinned), and the log temperature where it is learned.
        information: (m, m) Fisher information of the gate's choice, None where it was not asked for.
    """

    log_likelihood: float
    gram: Array
    gradient: Array
    information: Array | None


@dataclass(frozen=True)
class _Gate:
    """The gate on one block.

    Attributes:
        logits_KN: shifted so that the largest is 0; -inf where not selected.
        weights_KN: softmax of the logits, exactly 0 where not selected.
        log_sum_N: logarithm of the sum of exp(logits).
        slope_KN: derivative of the activation, None for a linear gate.
    """

    logits_KN: Array
    weights_KN: Array
    sum_N: Array
    slope_KN: Array | None


class Likelihood:
    """Data of one fit, and :meth:`sums` over them.

    Args:
        x: (n, d).
        y: (n,).
        weight: (n,) sample weights, or None for ones.
        frame: units of the fit.
        top_k: number of experts that the gate selects, None for all.
        by_score: experts are ranked by β1·x and not by the logit.
        activation: of the gate; None for a linear one.
        learn_temperature: fill the entries of gradient and information that belong to the temperature; 0 otherwise.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        frame: Frame,
        *,
        top_k: int | None = None,
        by_score: bool = False,
        activation: Activation = None,
        learn_temperature: bool = False,
    ) -> None:
        self.frame, self.top_k, self.by_score, self.weight = frame, top_k, by_score, weight
        self.learn_temperature = learn_temperature
        self.activation = None if activation in (None, "identity") else activation_of(activation)
        n, d = x.shape
        self.rows = np.empty((d + 2, n))  # 1, x', y'
        self.rows[0] = 1.0
        self.rows[1:-1] = ((x - frame.center) / frame.scale).T
        self.rows[-1] = (y - frame.y_center) / frame.y_scale
        self.total = float(n if weight is None else weight.sum())

    def with_top_k(self, top_k: int | None) -> Likelihood:
        """The same data under a gate that selects another number of experts."""
        other = copy.copy(self)
        other.top_k = top_k
        return other

    def sums(self, state: State, *, information: bool = False) -> Sums:
        """Evaluate ``state``; ``information=True`` adds the gate's Fisher information.

        Raises:
            FloatingPointError: the log-likelihood is not finite (an activation gave something that is not).
        """
        k, q = state.gate.shape
        log_likelihood = -self.total * math.log(self.frame.y_scale)
        rows_of_gate = (k - 1) * q
        m = rows_of_gate + self.learn_temperature
        gram, gradient = np.zeros((k, q + 1, q + 1)), np.zeros(m)
        fisher = np.zeros((m, m)) if information else None
        for start in range(0, self.rows.shape[1], BLOCK):
            rows = self.rows[:, start : start + BLOCK]
            weight_N = None if self.weight is None else self.weight[start : start + BLOCK]
            gate = self._gate(state, rows[:-1])
            log_p_N, r_KN = _responsibilities(state, rows, gate)
            log_likelihood += float(log_p_N.sum() if weight_N is None else weight_N @ log_p_N)
            if not math.isfinite(log_likelihood):
                raise FloatingPointError("the log-likelihood is not finite: the gate's activation or the data overflow")
            excess_KN = r_KN - gate.weights_KN
            if weight_N is not None:
                r_KN *= weight_N
                excess_KN *= weight_N
            gram += _weighted_gram(r_KN, rows)
            cooled = math.exp(-state.log_temperature)
            gradient[:rows_of_gate] += cooled * _gate_gradient(excess_KN, gate, rows[:-1])
            if fisher is not None:
                fisher[:rows_of_gate, :rows_of_gate] += cooled**2 * _gate_information(weight_N, gate, rows[:-1])
            if self.learn_temperature:
                _add_temperature(gradient, fisher, weight_N, excess_KN, gate, rows[:-1], cooled)
        return Sums(log_likelihood, gram, gradient, fisher)

    def _gate(self, state: State, z_QN: Array) -> _Gate:
        bias_K = state.gate[:, 0]
        slope_KN = None
        if self.activation is None:
            logits_KN = state.gate @ z_QN
            scores_KN = logits_KN
            if self.by_score:  # β1·x in the units of the data, without the bias
                raw_bias_K = bias_K - state.gate[:, 1:] @ (self.frame.center / self.frame.scale)
                scores_KN = logits_KN - raw_bias_K[:, None]
        else:
            scores_KN, slope_KN = _activate(self.activation, state.gate[:, 1:] @ z_QN[1:])
            logits_KN = scores_KN + bias_K[:, None]
        if self.top_k is not None and self.top_k < len(bias_K):
            unselected_KN = ~top_k_mask(scores_KN if self.by_score else logits_KN, self.top_k)
            np.putmask(logits_KN, unselected_KN, -np.inf)
        if state.log_temperature:
            logits_KN *= math.exp(-state.log_temperature)
        logits_KN -= logits_KN.max(0)
        weights_KN = _exp(logits_KN.copy())
        sum_N = weights_KN.sum(0)
        weights_KN /= sum_N
        return _Gate(logits_KN, weights_KN, sum_N, slope_KN)


def _exp(values: Array) -> Array:
    """In place; torch's exponential of doubles is vectorised on every x86 machine, numpy's only with AVX-512."""
    torch.from_numpy(values).exp_()
    return values


def _activate(activation: object, scores_KN: Array) -> tuple[Array, Array]:
    """The activation and its derivative."""
    inputs = torch.from_numpy(scores_KN).requires_grad_()
    with torch.enable_grad():
        values = activation(inputs)  # type: ignore[operator]
        (slope,) = torch.autograd.grad(values.sum(), inputs)
    return values.detach().numpy(), slope.numpy()


def top_k_mask(scores_KN: NDArray[np.float64], top_k: int) -> NDArray[np.bool_]:
    """Which experts have the ``top_k`` largest scores of each sample; ties go to the lowest index.

    An expert is selected if fewer than ``top_k`` others beat it, which for a few experts is far cheaper than sorting.
    """
    k = len(scores_KN)
    beaten_KN = np.zeros(scores_KN.shape, dtype=np.int16)
    for i in range(k):
        for j in range(i + 1, k):
            j_wins = scores_KN[j] > scores_KN[i]
            beaten_KN[i] += j_wins
            beaten_KN[j] += ~j_wins
    return beaten_KN < top_k


def _responsibilities(state: State, rows: Array, gate: _Gate) -> tuple[Array, Array]:
    """Log p(y|x) up to the unit of y (N,), and the posterior probabilities of the experts (K, N)."""
    joint_KN = state.experts @ rows[:-1]
    joint_KN -= rows[-1]
    joint_KN *= joint_KN
    joint_KN *= (-0.5 / state.var)[:, None]
    joint_KN += (-0.5 * np.log(2 * math.pi * state.var))[:, None]
    joint_KN += gate.logits_KN
    largest_N = joint_KN.max(0)
    joint_KN -= largest_N
    r_KN = _exp(joint_KN)
    sum_N = r_KN.sum(0)
    r_KN /= sum_N
    sum_N /= gate.sum_N
    largest_N += np.log(sum_N)
    return largest_N, r_KN


def _weighted_gram(weights_PN: Array, rows_RN: Array) -> Array:
    """(P, R, R) Σ_n weights_pn rows_n rows_nᵀ, as one matrix product."""
    p, r = len(weights_PN), len(rows_RN)
    weighted = (weights_PN[:, None, :] * rows_RN).reshape(p * r, -1)
    return (weighted @ rows_RN.T).reshape(p, r, r)


def _finite(logits_KN: Array) -> Array:
    """Logits with 0 where an expert is not selected: they only ever meet a weight of 0 there."""
    return np.where(np.isfinite(logits_KN), logits_KN, 0.0)


def _gate_gradient(excess_KN: Array, gate: _Gate, z_QN: Array) -> Array:
    """((k - 1)·q,) Σ_n (r - w)_ni times the derivatives of τ·logit_i by row i of the gate, with excess = r - w."""
    free_KN = excess_KN[:-1]
    if gate.slope_KN is None:
        return (free_KN @ z_QN.T).ravel()
    by_slope = (free_KN * gate.slope_KN[:-1]) @ z_QN[1:].T
    return np.column_stack([free_KN.sum(1), by_slope]).ravel()


def _derivatives(gate: _Gate, z_QN: Array) -> Array:
    """(K - 1 or 1, Q, N) derivatives of τ·logit_i by row i of the gate; a linear gate has the same for all rows."""
    if gate.slope_KN is None:
        return z_QN[None]
    j_KQN = z_QN * gate.slope_KN[:-1, None, :]
    j_KQN[:, 0] = 1.0
    return j_KQN


def _gate_information(weight_N: Array | None, gate: _Gate, z_QN: Array) -> Array:
    """((k - 1)·q, (k - 1)·q) Σ_n Jᵀ (diag(w) - w wᵀ) J, with J the derivatives of the gate's τ·logits."""
    j_KQN = _derivatives(gate, z_QN)
    wj_KQN = gate.weights_KN[:-1, None, :] * j_KQN
    k, q, n = wj_KQN.shape
    flat = wj_KQN.reshape(k * q, n)
    weighted = flat if weight_N is None else flat * weight_N
    information = -(weighted @ flat.T)
    for i in range(k):
        place = slice(i * q, (i + 1) * q)
        information[place, place] += weighted[place] @ j_KQN[min(i, len(j_KQN) - 1)].T
    return information


def _add_temperature(
    gradient: Array,
    fisher: Array | None,
    weight_N: Array | None,
    excess_KN: Array,
    gate: _Gate,
    z_QN: Array,
    cooled: float,
) -> None:
    """Add the last entries, those of log τ: the derivative of logit_i by it is -logit_i."""
    # an expert that is not selected has logit -inf, but weight and responsibility 0
    logits_KN = np.where(np.isfinite(gate.logits_KN), gate.logits_KN, 0.0)
    gradient[-1] -= np.einsum("kn,kn->", excess_KN, logits_KN)
    if fisher is None:
        return
    w_KN = gate.weights_KN if weight_N is None else gate.weights_KN * weight_N
    centred_KN = logits_KN - np.einsum("kn,kn->n", gate.weights_KN, logits_KN)
    cross = -cooled * _gate_gradient(w_KN * centred_KN, gate, z_QN)
    fisher[:-1, -1] += cross
    fisher[-1, :-1] += cross
    fisher[-1, -1] += np.einsum("kn,kn,kn->", w_KN, centred_KN, centred_KN)
