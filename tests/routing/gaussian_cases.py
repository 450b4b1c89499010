"""Mixtures that several tests fit or compare."""

from __future__ import annotations

import numpy as np

from softgate.routing import MixingMeasure

#: Two experts that cross, as in the simulation of the paper.
CROSSING = MixingMeasure(beta0=[-8, 0], beta1=[25, 0], a=[-20, 20], b=[15, -5], var=[0.09, 0.16])
#: Three experts in the plane.
PLANE = MixingMeasure(
    beta0=[0.3, -0.2, 0],
    beta1=[[1.0, -2.0], [0.5, 1.5], [0, 0]],
    a=[[2.0, 0], [-1, 1], [0, -2]],
    b=[0, 1, -1],
    var=[0.2, 0.3, 0.25],
)


def draw(measure: MixingMeasure, n: int, seed: int = 0, low: float = 0.0, high: float = 1.0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, (n, measure.n_features))
    return x, measure.sample(x, rng)
