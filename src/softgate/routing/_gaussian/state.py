"""Parameters while they are fitted, in units in which the data have mean about 0 and spread about 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softgate.routing.mixing_measure import MixingMeasure

__all__: list[str] = []

Array = NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """Parameters in the units of a :class:`Frame`.

    Attributes:
        gate: (k, 1 + d) rows (bias, slopes).
        log_temperature: logarithm of the gate's temperature.
        experts: (k, 1 + d) rows (intercept, slopes).
        var: (k,) variances.
    """

    gate: Array
    log_temperature: float
    experts: Array
    var: Array


@dataclass(frozen=True)
class Frame:
    """Units of the fit: x = center + scale · x', y = y_center + y_scale · y'.

    Centring keeps normal equations well-conditioned. It moves β1·x, which an activation sees, so gates with an
    activation are fitted with center = 0.
    """

    center: Array
    scale: Array
    y_center: float
    y_scale: float

    @staticmethod
    def of(x: Array, y: Array, weight: Array, *, centred: bool) -> Frame:
        """Weighted means and standard deviations; a constant column keeps its unit."""
        total = weight.sum()
        mean = weight @ x / total
        spread = np.sqrt(weight @ (x - mean) ** 2 / total)
        y_mean = float(weight @ y / total)
        y_spread = math.sqrt(float(weight @ (y - y_mean) ** 2 / total))
        tiny = 1e-12 * np.abs(mean)  # what rounding leaves of a constant column
        scale = np.where(spread > tiny, spread, 1.0)
        y_scale = y_spread if y_spread > 1e-12 * abs(y_mean) else 1.0
        return Frame(mean if centred else np.zeros_like(mean), scale, y_mean, y_scale)

    def enter(self, measure: MixingMeasure) -> State:
        """The measure's parameters in these units."""
        bias = measure.beta0 + measure.beta1 @ self.center
        intercept = (measure.b + measure.a @ self.center - self.y_center) / self.y_scale
        return State(
            np.column_stack([bias, measure.beta1 * self.scale]),
            math.log(measure.temperature),
            np.column_stack([intercept, measure.a * self.scale / self.y_scale]),
            measure.var / self.y_scale**2,
        )

    def leave(self, state: State, like: MixingMeasure) -> MixingMeasure:
        """The measure with the parameters of ``state``, and everything else as in ``like``."""
        beta1 = state.gate[:, 1:] / self.scale
        a = state.experts[:, 1:] / self.scale * self.y_scale
        return like.with_options(
            beta0=state.gate[:, 0] - beta1 @ self.center,
            beta1=beta1,
            a=a,
            b=self.y_center + self.y_scale * state.experts[:, 0] - a @ self.center,
            var=state.var * self.y_scale**2,
            temperature=math.exp(state.log_temperature),
        )
