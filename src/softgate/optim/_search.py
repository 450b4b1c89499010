"""The adaptive search that all step rules share: propose, try, accept or be more careful, and when to stop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, StateError
from softgate.optim._curvature import Curvature
from softgate.optim._metric import Metric

__all__: list[str] = []

GAMMA_MIN = 1e-9
GAMMA_MAX = 1e16
#: Differences of values below this many roundings of the value are noise.
NOISE = 8.0


@dataclass(frozen=True)
class Point:
    """Where the search stands: x (d,), value, gradient and its dual norm."""

    x: Tensor
    value: float
    grad: Tensor
    dual: float

    @property
    def is_finite(self) -> bool:
        """Whether the value and the gradient are."""
        return math.isfinite(self.value) and math.isfinite(self.dual)

    def resolution(self) -> float:
        """The smallest difference from another value that means something."""
        return NOISE * torch.finfo(self.x.dtype).eps * abs(self.value)


class Rule(ABC):
    """How a step is proposed and judged; holds the one number that adapts.

    Attributes:
        symbol: what the number is called in the history.
        value: the number.
        uses_curvature: whether a curvature is built at every accepted point.
        compares_values: whether steps are judged by values, whose differences drown in rounding first.
        solves: systems solved so far.
    """

    symbol = "gamma"
    uses_curvature = True
    compares_values = True

    def __init__(self, value: float) -> None:
        self.value = value
        self.solves = 0

    @abstractmethod
    def propose(self, here: Point, curvature: Curvature | None, metric: Metric, start: Tensor | None) -> Tensor:
        """The step h; raises :class:`StateError` where the regularised curvature is not positive definite."""

    @abstractmethod
    def accepts(self, here: Point, there: Point, h: Tensor) -> bool:
        """Whether the step that :meth:`propose` gave last does enough."""

    @abstractmethod
    def accepted(self) -> None:
        """Be bolder."""

    @abstractmethod
    def rejected(self) -> bool:
        """Be more careful; False if that is not possible."""

    def is_unbounded(self, length: float) -> bool:
        """Whether the largest possible step was taken, and was not long enough."""
        return False


@dataclass(frozen=True)
class SearchOptions:
    """When to stop: see :func:`softgate.optim.minimize_gns`."""

    grad_tol: float = 1e-8
    ftol: float = 0.0
    f_star: float | None = None
    max_iter: int = 1000
    max_trials: int = 100


@dataclass
class Search:
    """The state of one minimisation.

    Attributes:
        evaluate: x -> value and gradient.
        build: x -> curvature at x.
        metric: B.
        rule: proposes and judges steps.
        options: when to stop.
        n_iter: accepted steps.
        n_fev: evaluations.
        history: one entry per point visited.
    """

    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]
    build: Callable[[Tensor], Curvature]
    metric: Metric
    rule: Rule
    options: SearchOptions
    n_iter: int = 0
    n_fev: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    status: str = ""

    def point(self, x: Tensor) -> Point:
        """Evaluate at x."""
        value, grad = self.evaluate(x)
        if grad.shape != x.shape:
            raise ArgumentValueError(f"fun must have a gradient of shape {tuple(x.shape)}, got {tuple(grad.shape)}")
        self.n_fev += 1
        value_number = float(value)
        finite = math.isfinite(value_number) and bool(grad.isfinite().all())
        return Point(x, value_number, grad, self.metric.dual(grad) if finite else math.inf)

    def record(self, here: Point) -> None:
        """Add a point to the history."""
        entry = {"fun": here.value, "grad_norm": here.dual, self.rule.symbol: self.rule.value,
                 "n_solves": float(self.rule.solves)}  # fmt: skip
        for name, number in entry.items():
            self.history.setdefault(name, []).append(number)

    def start(self, x: Tensor) -> Point:
        """The first point.

        Raises:
            ArgumentValueError: the value or the gradient is not finite there.
        """
        here = self.point(x)
        if not here.is_finite:
            raise ArgumentValueError(f"x0 must have a finite value and gradient, got value {here.value}")
        self.record(here)
        self.status = self._converged(here)
        return here

    def _converged(self, here: Point) -> str:
        options = self.options
        if here.dual <= options.grad_tol:
            return "gradient"
        if options.f_star is not None and here.value - options.f_star <= options.ftol:
            return "value"
        return ""

    def step(self, here: Point) -> Point:
        """One accepted step, or the same point if none is found; sets :attr:`status` when the search is over."""
        curvature = self.build(here.x) if self.rule.uses_curvature else None
        h: Tensor | None = None
        for _ in range(self.options.max_trials):
            try:
                h = self.rule.propose(here, curvature, self.metric, h)
            except StateError:  # not positive definite: more regularisation makes it so
                h = None
            else:
                there = self.point(here.x + h)
                change = self._judge(here, there, h)
                if change in ("accept", "last"):
                    return self._move(here, there, h, change)
                if change == "noise":
                    self.status = "precision"
                    return here
            if not self.rule.rejected():
                break
        self.status = "search_failed"
        return here

    def _judge(self, here: Point, there: Point, h: Tensor) -> str:
        """``"accept"`` or ``"reject"``; where values cannot tell any more ``"last"``, take it and stop, or ``"noise"``.

        Both the change of the value and what the slope promises must be below what rounding leaves of a value: two
        points on opposite sides of a valley have equal values as well.
        """
        if not there.is_finite:
            return "reject"
        if self.rule.accepts(here, there, h):
            return "accept"
        promised = abs(float(torch.dot(here.grad, h)))
        if max(promised, abs(here.value - there.value)) > here.resolution():
            return "reject"
        if there.dual <= here.dual:
            return "accept" if there.dual <= 0.5 * here.dual else "last"
        return "noise" if self.rule.compares_values else "reject"

    def _move(self, here: Point, there: Point, h: Tensor, change: str) -> Point:
        length = self.metric.norm(h)
        unbounded = self.rule.is_unbounded(length)
        self.rule.accepted()
        self.n_iter += 1
        self.record(there)
        options = self.options
        self.status = self._converged(there)
        if self.status:
            return there
        if change == "last":
            self.status = "precision"
        elif unbounded:
            self.status = "unbounded"
        elif options.f_star is None and options.ftol > 0.0 and here.value - there.value <= options.ftol:
            self.status = "change"
        elif self.n_iter >= options.max_iter:
            self.status = "max_iter"
        return there

    def run(self, x: Tensor, callback: Callable[[Point], Any] | None = None) -> Point:
        """Search from x until a stop; the reason is in :attr:`status`."""
        here = self.start(x)
        while not self.status:
            here = self.step(here)
            if callback is not None and callback(here) is True and not self.status:
                self.status = "callback"
        return here
