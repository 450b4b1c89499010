"""Rules of the adaptive search: gradient-normalized smoothness and what it is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate.errors import StateError
from softgate.optim._curvature import Curvature
from softgate.optim._metric import Metric
from softgate.optim._search import GAMMA_MAX, GAMMA_MIN, Point, Rule

__all__: list[str] = []

#: Constants of the baselines do not fall below this.
SMALLEST = 1e-5
TESTS = ("function", "gradient")


class Adaptive(Rule):
    """``h = -(H + λB)⁻¹ g`` with ``λ = ‖g‖_*/γ``; γ doubles with every step that is accepted, halves otherwise."""

    def __init__(self, gamma: float, test: str) -> None:
        super().__init__(min(max(gamma, GAMMA_MIN), GAMMA_MAX))
        self.test = test
        self.compares_values = test == "function"
        self.lam = 0.0

    def propose(self, here: Point, curvature: Curvature | None, metric: Metric, start: Tensor | None) -> Tensor:
        """See :class:`Rule`."""
        self.lam = here.dual / self.value
        if curvature is None:
            return metric.solve(here.grad) / -self.lam
        self.solves += 1
        return curvature.solve(-here.grad, self.lam, metric, start)

    def accepts(self, here: Point, there: Point, h: Tensor) -> bool:
        """``f - f₊ ≥ ‖g₊‖²/(8λ)``, which a step within the smoothness keeps, or its form with gradients (convex f)."""
        if self.test == "function":
            return here.value - there.value >= there.dual**2 / (8.0 * self.lam)
        return -float(torch.dot(there.grad, h)) >= there.dual**2 / (2.0 * self.lam)

    def accepted(self) -> None:
        """Double γ."""
        self.value = min(max(2.0 * self.value, GAMMA_MIN), GAMMA_MAX)

    def rejected(self) -> bool:
        """Halve γ."""
        if self.value <= GAMMA_MIN:
            return False
        self.value = max(0.5 * self.value, GAMMA_MIN)
        return True

    def is_unbounded(self, length: float) -> bool:
        """A step as long as the largest γ: nothing bends the function any more."""
        return self.value >= GAMMA_MAX and length >= 0.5 * self.value


class Preconditioned(Adaptive):
    """``h = -(H + εI)⁻¹ g / λ``: the curvature scales the step and is not regularised; one solve per curvature."""

    def __init__(self, gamma: float, test: str, eps: float) -> None:
        super().__init__(gamma, test)
        self.eps = eps
        self._scaled: tuple[Tensor, Tensor] | None = None

    def propose(self, here: Point, curvature: Curvature | None, metric: Metric, start: Tensor | None) -> Tensor:
        """See :class:`Rule`."""
        assert curvature is not None
        self.lam = here.dual / self.value
        if self._scaled is None or self._scaled[0] is not here.x:
            self.solves += 1
            try:
                self._scaled = (here.x, curvature.solve(-here.grad, self.eps))
            except StateError as error:  # no γ helps
                self.value = GAMMA_MIN
                raise StateError("H + eps I must be positive definite for rule 'preconditioned'") from error
        return self._scaled[1] / self.lam


class Fixed(Adaptive):
    """γ as given, every step taken: for quasi-self-concordant functions, where a constant over M is enough."""

    def accepts(self, here: Point, there: Point, h: Tensor) -> bool:
        """Always."""
        return True

    def accepted(self) -> None:
        """Leave γ alone."""

    def rejected(self) -> bool:
        """There is nothing to change."""
        return False


class Constant(Rule):
    """A constant that falls with steps accepted and grows otherwise."""

    def __init__(self, down: float, up: float) -> None:
        super().__init__(1.0)
        self.down, self.up = down, up

    def accepted(self) -> None:
        """Lower the constant."""
        self.value = max(self.value / self.down, SMALLEST)

    def rejected(self) -> bool:
        """Raise the constant."""
        self.value *= self.up
        return math.isfinite(self.value)


class SuperNewton(Constant):
    """``λ = H_k ‖g‖_*``: the adaptive Newton method of Doikov, Mishchenko and Nesterov, for exponent 1."""

    symbol = "H"
    compares_values = False

    def __init__(self) -> None:
        super().__init__(4.0, 4.0)
        self.lam = 0.0

    def propose(self, here: Point, curvature: Curvature | None, metric: Metric, start: Tensor | None) -> Tensor:
        """See :class:`Rule`."""
        assert curvature is not None
        self.lam = self.value * here.dual
        self.solves += 1
        return curvature.solve(-here.grad, self.lam, metric, start)

    def accepts(self, here: Point, there: Point, h: Tensor) -> bool:
        """``⟨g₊, -h⟩ ≥ ‖g₊‖²/(4λ)``."""
        return -float(torch.dot(there.grad, h)) >= there.dual**2 / (4.0 * self.lam)


class Cubic(Constant):
    """Cubic regularisation: the minimiser of ``⟨g,h⟩ + ½⟨Hh,h⟩ + (M/6)‖h‖³`` for positive semidefinite H."""

    symbol = "M"

    def __init__(self) -> None:
        super().__init__(2.0, 2.0)
        self.model = 0.0

    def propose(self, here: Point, curvature: Curvature | None, metric: Metric, start: Tensor | None) -> Tensor:
        """``h = -(H + (M r/2) B)⁻¹ g`` where ``‖h‖ = r``, by bisection on r; r ≤ √(2‖g‖/M) as H ⪰ 0."""
        assert curvature is not None
        low, high = 0.0, math.sqrt(2.0 * here.dual / self.value)
        h: Tensor | None = None
        for _ in range(60):
            r = 0.5 * (low + high)
            self.solves += 1
            h = curvature.solve(-here.grad, 0.5 * self.value * r, metric, h)
            length = metric.norm(h)
            if abs(length - r) <= 1e-8 * r:
                break
            low, high = (r, min(high, length)) if length > r else (max(low, length), r)
        assert h is not None
        bend = float(torch.dot(curvature.matvec(h), h))
        self.model = float(torch.dot(here.grad, h)) + 0.5 * bend + self.value / 6.0 * metric.norm(h) ** 3
        return h

    def accepts(self, here: Point, there: Point, h: Tensor) -> bool:
        """The value is no larger than the model says."""
        return there.value <= here.value + self.model


class GradientDescent(Constant):
    """``h = -B⁻¹g/L``, L by backtracking."""

    symbol = "L"
    uses_curvature = False

    def __init__(self) -> None:
        super().__init__(2.0, 2.0)

    def propose(self, here: Point, curvature: Curvature | None, metric: Metric, start: Tensor | None) -> Tensor:
        """See :class:`Rule`."""
        return metric.solve(here.grad) / -self.value

    def accepts(self, here: Point, there: Point, h: Tensor) -> bool:
        """The quadratic upper bound holds at the new point."""
        return there.value <= here.value - here.dual**2 / (2.0 * self.value)


RULES = ("adaptive", "preconditioned", "fixed", "super_newton", "cubic", "gradient_descent")


def make_rule(name: str, gamma: float, test: str, eps: float = 1e-8) -> Rule:
    """The rule ``name`` with first radius ``gamma``; baselines start with a constant of 1."""
    if name == "adaptive":
        return Adaptive(gamma, test)
    if name == "preconditioned":
        return Preconditioned(gamma, test, eps)
    if name == "fixed":
        return Fixed(gamma, test)
    if name == "super_newton":
        return SuperNewton()
    return Cubic() if name == "cubic" else GradientDescent()
