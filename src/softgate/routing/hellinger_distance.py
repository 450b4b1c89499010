"""Hellinger distance between two conditional densities, by quadrature placed where the experts are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.routing.mixing_measure import MixingMeasure

__all__ = ["hellinger"]

Array = NDArray[np.float64]

#: Where intervals end, in standard deviations from the mean of each expert. Beyond the last no expert has mass.
_ENDS = np.array([0.0, 0.7, 1.4, 2.2, 3.2, 4.5, 6.5, 9.0])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
#: Inputs that are integrated at once: their nodes stay in the cache.
_CHUNK = 32


def hellinger(p: Any, q: Any, xs: ArrayLike) -> float:
    """Mean over ``xs`` of the Hellinger distance ``√(½ ∫ (√p(y|x) - √q(y|x))² dy)``.

    Gauss–Legendre quadrature on intervals between multiples of every expert's standard deviation around its mean,
    exact to about 1e-8.

    Args:
        p: a :class:`MixingMeasure` or a fitted :class:`GaussianMoE`.
        q: the same.
        xs: (m, d) inputs to average over.

    Returns:
        A number in [0, 1]; 0 for equal densities.

    Raises:
        ArgumentTypeError: ``p`` or ``q`` is no measure.
        ArgumentValueError: ``xs`` is empty or has another dimension.

    Example:
        >>> one = MixingMeasure([0], [0], [0], [0], [1])
        >>> two = MixingMeasure([0], [0], [0], [1], [1])
        >>> round(hellinger(one, two, [[0.0]]) ** 2, 6)  # 1 - exp(-1/8)
        0.117503

    Paper: arXiv 2309.13850, section 3 (the distance in which density rates are stated).
    """
    measures = []
    for name, value in (("p", p), ("q", q)):
        measure = getattr(value, "measure_", value)
        if not isinstance(measure, MixingMeasure):
            raise ArgumentTypeError(
                f"{name} must be a MixingMeasure or a fitted GaussianMoE, got {type(value).__name__}"
            )
        measures.append(measure)
    x = np.asarray(xs, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ArgumentValueError(f"xs must have shape (m, d) with m at least 1, got {x.shape}")
    chunks = [x[start : start + _CHUNK] for start in range(0, len(x), _CHUNK)]
    return float(np.concatenate([_distances(measures[0], measures[1], chunk) for chunk in chunks]).mean())


def _distances(p: MixingMeasure, q: MixingMeasure, x: Array) -> Array:
    ends = np.concatenate([_interval_ends(measure, x) for measure in (p, q)], 1)
    ends.sort(1)
    middle, half = (ends[:, 1:] + ends[:, :-1]) / 2, (ends[:, 1:] - ends[:, :-1]) / 2
    y = (middle[..., None] + half[..., None] * _NODES).reshape(len(x), -1)
    difference = np.sqrt(_density(p, x, y)) - np.sqrt(_density(q, x, y))
    weights = (half[..., None] * _WEIGHTS).reshape(len(x), -1)
    return np.sqrt(0.5 * (weights * difference**2).sum(1))


def _interval_ends(measure: MixingMeasure, x: Array) -> Array:
    steps = np.concatenate([-_ENDS[:0:-1], _ENDS])
    return (measure.means(x)[..., None] + np.sqrt(measure.var)[:, None] * steps).reshape(len(x), -1)


def _density(measure: MixingMeasure, x: Array, y: Array) -> Array:
    """(m, points) p(y|x)."""
    total = np.zeros_like(y)
    gate, means = measure.gate(x), measure.means(x)
    for weight, mean, var in zip(gate.T, means.T, measure.var, strict=True):
        z = y - mean[:, None]
        total += (weight / np.sqrt(2 * np.pi * var))[:, None] * np.exp(z * z * (-0.5 / var))
    return total
