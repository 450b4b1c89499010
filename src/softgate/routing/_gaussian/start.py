"""Where a fit starts when nobody says where: clusters of (x, y), a line per cluster, an even gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from softgate.routing._gaussian.em import solve_experts
from softgate.routing._gaussian.likelihood import Likelihood, Sums
from softgate.routing._gaussian.state import Array, State

__all__: list[str] = []

#: A start need not be the best clustering.
LLOYD_STEPS = 10


def start_from_clusters(
    likelihood: Likelihood, k: int, var_floor: float, rng: np.random.Generator | None, log_temperature: float
) -> State:
    """K-means on the scaled (x, y), least squares in each cluster, and a gate of zeros.

    Args:
        likelihood: the data, in the units of the fit.
        k: number of experts.
        var_floor: smallest variance, in the same units.
        rng: None cuts the data into k parts along their first principal axis to begin with, which is deterministic and
            sees a sample of weight 2 as two samples; a generator draws the first centres from the data.
        log_temperature: of the gate.
    """
    points = likelihood.rows[1:]
    weight = np.ones(points.shape[1]) if likelihood.weight is None else likelihood.weight
    points = points - (points @ weight / weight.sum())[:, None]
    first = _principal_parts(points, weight, k) if rng is None else _random_parts(points, weight, k, rng)
    labels = _lloyd(points, weight, first, k)
    q = len(points)
    one_hot = (labels == np.arange(k)[:, None]) * weight
    gram = np.einsum("kn,in,jn->kij", one_hot, likelihood.rows, likelihood.rows, optimize=True)
    even = State(np.zeros((k, q)), log_temperature, np.zeros((k, q)), np.ones(k))
    solved = solve_experts(even, Sums(0.0, gram, np.empty(0), None), var_floor)
    gate = even.gate.copy()
    if likelihood.activation is not None:
        # an activation may be flat at 0 (ReLU, |.|): begin with slopes towards the clusters
        centres = gram[:, 0, 1:-1] / np.maximum(gram[:, 0, :1], 1e-12)
        gate[:, 1:] = centres - centres[-1]
    return replace(solved, gate=gate)


def _principal_parts(points: Array, weight: Array, k: int) -> NDArray[np.intp]:
    covariance = (points * weight) @ points.T
    axis = np.linalg.eigh(covariance)[1][:, -1]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    along = axis @ points
    order = np.argsort(along, kind="stable")
    share = weight[order].cumsum() / weight.sum()
    # the smallest value that has at least j/k of the weight below or at it; rounding must not move it by a sample
    cuts = [along[order[np.searchsorted(share, j / k - 1e-9)]] for j in range(1, k)]
    return np.asarray(np.searchsorted(cuts, along - 1e-9, side="left"))


def _random_parts(points: Array, weight: Array, k: int, rng: np.random.Generator) -> NDArray[np.intp]:
    chosen = rng.choice(points.shape[1], size=k, p=weight / weight.sum())
    return _nearest(points, points[:, chosen])


def _nearest(points: Array, centres: Array) -> NDArray[np.intp]:
    """Index of the nearest centre; |p|² is the same for all."""
    return np.asarray(((centres * centres).sum(0)[:, None] - 2 * centres.T @ points).argmin(0))


def _lloyd(points: Array, weight: Array, labels: NDArray[np.intp], k: int) -> NDArray[np.intp]:
    weighted = points * weight
    for _ in range(LLOYD_STEPS):
        mass = np.bincount(labels, weight, minlength=k)
        sums = np.stack([np.bincount(labels, row, minlength=k) for row in weighted])
        centres = sums / np.maximum(mass, 1e-12)
        moved = _nearest(points, centres)
        if (moved == labels).all():
            break
        labels = moved
    return labels
