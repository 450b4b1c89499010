"""Data from a known Gaussian mixture of experts, and starts near it: what studies of convergence rates fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softgate.errors import ArgumentValueError
from softgate.routing import MixingMeasure

__all__ = ["ExpertMixture"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ExpertMixture:
    """A mixing measure with x uniform on an interval.

    Attributes:
        truth: the measure that the responses are drawn from, its last expert pinned.
        low: smallest x.
        high: largest x.
    """

    truth: MixingMeasure
    low: float = 0.0
    high: float = 1.0

    def draw(self, n: int, seed: int) -> tuple[Array, Array]:
        """X (n, 1) and y (n,)."""
        rng = np.random.default_rng((seed, 0))
        x = rng.uniform(self.low, self.high, (n, 1))
        return x, self.truth.sample(x, rng)

    def grid(self, points: int = 100) -> Array:
        """(points, 1) midpoints of equal parts of the interval, for averages over x."""
        return (self.low + (self.high - self.low) * (np.arange(points) + 0.5) / points)[:, None]

    def near_start(self, k: int, n: int, seed: int) -> MixingMeasure:
        """True values plus noise that shrinks with n: 0.005 n^-0.083, for standard deviations |0.0005 n^-0.25|.

        Every true expert is the start of at least one of the ``k`` fitted ones.
        """
        rng = np.random.default_rng((seed, 1))
        t, at = self.truth, self._assign(k, rng)
        small = 0.005 * n**-0.083

        def noisy(values: Array) -> Array:
            return values[at] + small * rng.standard_normal(values[at].shape)

        deviation = np.sqrt(t.var[at]) + np.abs(0.0005 * n**-0.25 * rng.standard_normal(k))
        moved = t.with_options(beta0=noisy(t.beta0), beta1=noisy(t.beta1), a=noisy(t.a), b=noisy(t.b), var=deviation**2)
        return moved.normalise()

    def noisy_start(self, k: int, seed: int, spread: float = 0.1) -> MixingMeasure:
        """True values plus noise of size ``spread`` on every free parameter, whatever n is.

        Temperature and variances are multiplied by exp(noise). The last expert stays pinned to the true gate.
        """
        rng = np.random.default_rng((seed, 1))
        t, at = self.truth, self._assign(k, rng)
        free = np.append(np.ones(k - 1), 0.0)

        def noise(*shape: int) -> Array:
            return spread * rng.standard_normal(shape)

        return t.with_options(
            beta0=t.beta0[at] + free * noise(k),
            beta1=t.beta1[at] + free[:, None] * noise(k, t.n_features),
            a=t.a[at] + noise(k, t.n_features),
            b=t.b[at] + noise(k),
            var=t.var[at] * np.exp(noise(k)),
            temperature=t.temperature * float(np.exp(noise())),
        )

    def _assign(self, k: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Which true expert each fitted one starts from: extra ones at random, then each true one once, in order."""
        true = self.truth.n_experts
        if k < true:
            raise ArgumentValueError(f"k must be at least the number of true experts ({true}), got {k}")
        return np.concatenate([rng.integers(true, size=k - true), np.arange(true)]).astype(np.intp)
