"""Sword++ and its relatives: mirror descent with many step sizes at once, for comparators that move."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number, check_sizes
from softgate.errors import ArgumentValueError, StateError, bad_type, check_choice
from softgate.optim._online import Gradient, OnlineLearner
from softgate.optim.domains import Domain, check_domain, diameter_of
from softgate.optim.optimistic_omd import start_of

__all__ = ["Doubling", "SwordPP"]

METHODS = ("sword++", "sword", "sword_best")


class SwordPP(OnlineLearner):
    r"""Online learner for moving targets: an ensemble of step sizes, mixed by optimistic Hedge.

    Every member i keeps ``x̂_i`` and plays ``x_i = Π(x̂_i - η_i m)`` with the same hint ``m = g_{t-1}``; the weights
    follow ``⟨g, x_i⟩ + λ‖x_{t,i} - x_{t-1,i}‖²``, λ = 2L, with the same for m as their hint; what is played is the
    mixture. One gradient per round. The dynamic regret goes with the root of the comparators' path length.

    Step sizes are ``η_min, 2η_min, 4η_min, …`` up to the first one above ``η_max``. All members are one tensor
    ``(*batch_shape, N, d)``.

    Args:
        domain: a bounded set with a Euclidean projection.
        horizon: rounds T that step sizes are made for; more are played, with a warning. :class:`Doubling` needs none.
        G: bound on gradients' norms.
        L: smoothness of the losses: Lipschitz constant of their gradients.
        pool: the step sizes themselves.
        eta_min: smallest step size, by default ``D/(G√T)`` for ``"sword++"``.
        eta_max: largest step size, by default ``1/(8L)``.
        method: ``"sword++"``; ``"sword"``, the older ensemble whose members take a gradient each, at the centre too
            (``update`` then needs the gradient as a function, and calls it 2N + 1 times); ``"sword_best"``, that and as
            many members without any hint, and weights whose hint is trusted as much as it proved right.
        dim: entries of a point, where the domain does not say it.
        start: first point ``(d,)``; by default the projection of 0.
        batch_shape: independent streams.
        dtype: float64 or float32.
        device: where the state lies.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is not allowed, or the domain is unbounded.

    The hints of the weights in ``"sword"`` and ``"sword_best"`` are taken at the points that the members played last
    (at the new ones for members without hint), and ``"sword_best"`` trusts by the rounds before the last, as the
    authors' group has it in its library; the text of Sword takes new points and all rounds.

    Example:
        >>> from softgate.optim import Ball
        >>> learner = SwordPP(Ball(1.0), horizon=1000, G=1.0, L=1.0, dim=2)
        >>> [round(eta, 4) for eta in learner.pool.tolist()]
        [0.0632, 0.1265]
        >>> for _ in range(999):
        ...     x = learner.predict()
        ...     learner.update(x - torch.tensor([0.6, 0.0], dtype=torch.float64))
        >>> [round(v, 2) for v in learner.predict().tolist()]
        [0.6, 0.0]

    Paper: Chen, Zhang, Tu, Zhao and Zhang, arXiv 2302.04552 (dynamic regret); Zhao, Zhang, Zhang and Zhou, Adaptivity
    and Non-stationarity, arXiv 2112.14368 (Sword++).
    """

    _STATE = ("_centers", "_points", "_hints", "_log_p", "_variation", "_guess", "_trust", "_at")

    def __init__(
        self,
        domain: Domain,
        horizon: int,
        G: float,
        L: float,
        pool: Tensor | Sequence[float] | None = None,
        eta_min: float | None = None,
        eta_max: float | None = None,
        *,
        method: str = "sword++",
        dim: int | None = None,
        start: Tensor | Sequence[float] | None = None,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float64,
        device: str | torch.device | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        check_sizes(horizon=horizon)
        for name, value in (("G", G), ("L", L), ("eta_min", eta_min), ("eta_max", eta_max)):
            if value is not None or name in ("G", "L"):
                check_number(name, value, low=0.0, low_open=True, high_open=True)
        dim = check_domain(domain, dim if dim is not None or start is None else len(start))
        D = diameter_of(domain, dim)
        if D is None:
            raise ArgumentValueError("domain must have a diameter: give a bounded one, or say how far is far enough, "
                                     "as in Unconstrained(diameter)")  # fmt: skip
        super().__init__(dim, batch_shape, dtype, device)
        self.domain, self.horizon, self.method = domain, horizon, method
        if pool is None:
            steps, self._hinted = _pools(method, D, G, L, horizon, eta_min, eta_max)
        else:
            steps, self._hinted = _given_pool(pool)
        self.pool = torch.tensor(steps, dtype=dtype, device=self.device)
        self._weight, self._largest_rate = (2.0 * L if method == "sword++" else 0.0), 1.0 / (8.0 * D**2 * L)
        self._warned = False
        self._begin(start_of(domain, dim, start).to(self.device, dtype))

    def _begin(self, start: Tensor) -> None:
        members = (*self.batch_shape, len(self.pool))
        self._centers = start.expand(*members, self.dim).clone()
        self._points = self._centers
        self._hints = torch.zeros_like(self._centers)
        self._log_p = torch.full(members, -math.log(len(self.pool)), dtype=self.dtype, device=self.device)
        self._guess = torch.zeros_like(self._log_p)
        self._variation = torch.ones((*self.batch_shape, 1), dtype=torch.float64, device=self.device)
        self._trust = torch.zeros((*self.batch_shape, 2), dtype=torch.float64, device=self.device)
        self._at = self._zeros()

    @property
    def weights(self) -> Tensor:
        """Weights of the members in the coming round, given what the weights take as hint, ``(*batch_shape, N)``."""
        return torch.softmax(self._log_p - self._rate() * self._guess, -1)

    def _rate(self) -> Tensor:
        return self._variation.rsqrt().clamp(max=self._largest_rate).to(self.dtype)

    def _project(self, v: Tensor) -> Tensor:
        """All members' centres, each moved against its own ``v`` by its own step."""
        return self.domain.project(self._centers - self.pool.unsqueeze(-1) * v)

    def _play(self, hint: Tensor | None) -> Tensor:
        if self.rounds >= self.horizon and not self._warned:
            self._warned = True
            warnings.warn(f"more than horizon={self.horizon} rounds are played: the step sizes are too large for the "
                          "bound on the regret; Doubling restarts in time", stacklevel=3)  # fmt: skip
        if self.method != "sword++":
            if hint is not None:
                raise ArgumentValueError(f"hint must be None for method {self.method!r}, which makes its own")
            self._points = self._project(self._hints)
            return self._mixture(self._points)
        self._m = self._last if hint is None else hint
        points = self._project(self._m.unsqueeze(-2))
        self._switch = self._weight * (points - self._points).square().sum(-1)
        if self.rounds == 0:
            self._switch = torch.zeros_like(self._switch)
        self._guess = (points * self._m.unsqueeze(-2)).sum(-1) + self._switch
        self._points = points
        return self._mixture(points)

    def _mixture(self, points: Tensor) -> Tensor:
        return (self.weights.unsqueeze(-1) * points).sum(-2)

    def _learn(self, g: Tensor, gradient: Gradient) -> None:
        if self.method == "sword++":
            losses = (self._points * g.unsqueeze(-2)).sum(-1) + self._switch
            self._follow(losses)
            self._centers = self._project(g.unsqueeze(-2))
            return
        if not callable(gradient):
            raise StateError(f"grad must be the function that gives the gradient at a point for {self.method!r}")
        self._learn_by_members(g, gradient)

    def _follow(self, losses: Tensor) -> None:
        """Move the weights by the members' losses, then let the surprise lower the rate."""
        log_p = self._log_p - self._rate() * losses
        self._log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        miss = (losses - self._guess).abs().amax(-1, keepdim=True).double()
        self._variation = self._variation + miss.square()

    def _learn_by_members(self, g: Tensor, gradient: Callable[[Tensor], Any]) -> None:
        weights = self.weights

        def at_all(points: Tensor) -> Tensor:
            return torch.stack([self._tensor("grad", gradient(x)) for x in points.unbind(-2)], -2)

        losses = (self._points * g.unsqueeze(-2)).sum(-1)
        self._centers = self._project(at_all(self._points))
        hinted = (torch.arange(len(self.pool), device=self.device) < self._hinted).unsqueeze(-1)
        self._hints = torch.where(hinted, at_all(self._centers), 0.0)
        seen = torch.where(hinted, self._points, self._centers)
        trust = torch.ones_like(self._variation)
        if self.method == "sword_best":
            trust = self._trust.softmax(-1)[..., :1]
            surprises = torch.stack([(g - self._at).square().sum(-1), g.square().sum(-1)], -1)
            self._trust = self._trust - surprises.double()
        self._follow(losses)
        self._at = self._tensor("grad", gradient((weights.unsqueeze(-1) * seen).sum(-2)))
        self._guess = trust.to(self.dtype) * (seen * self._at.unsqueeze(-2)).sum(-1)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`OnlineLearner.state_dict`; between rounds only, since members' points are not kept.

        Raises:
            StateError: a point was predicted and its gradient has not come.
        """
        if self._played is not None:
            raise StateError(f"state_dict needs round {self.rounds + 1} finished: call update first")
        return super().state_dict()


def _doubled(low: float, high: float) -> list[float]:
    """``low, 2 low, 4 low, …`` up to the first value above ``high``."""
    steps = [low]
    while steps[-1] <= high:
        steps.append(2.0 * steps[-1])
    return steps


def _pools(
    method: str, D: float, G: float, L: float, T: int, low: float | None, high: float | None
) -> tuple[list[float], int]:
    """Step sizes of all members, and how many of them use a hint."""
    if method == "sword++":
        pool = _doubled(low or D / (G * math.sqrt(T)), high or 1.0 / (8.0 * L))
        return pool, len(pool)
    pool = _doubled(low or math.sqrt(D**2 / (8.0 * G**2 * T)), high or 1.0 / (4.0 * L))
    if method == "sword":
        return pool, len(pool)
    return pool + _doubled(low or math.sqrt(D / (16.0 * L * G * T)), high or 1.0 / (4.0 * L)), len(pool)


def _given_pool(pool: Any) -> tuple[list[float], int]:
    steps = pool.tolist() if isinstance(pool, Tensor) else pool
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        bad_type("pool", pool, "a sequence of step sizes")
    if not steps:
        raise ArgumentValueError("pool must hold at least one step size, got none")
    for step in steps:
        check_number("pool", step, low=0.0, low_open=True, high_open=True)
    return list(steps), len(steps)


class Doubling:
    """A learner that needs its horizon, made anew with twice the horizon whenever that has passed.

    Args:
        make: gives the learner for a number of rounds.
        first: rounds of the first learner.

    Raises:
        ArgumentTypeError: ``make`` is not callable.
        ArgumentValueError: ``first`` is no positive int.

    Example:
        >>> from softgate.optim import Ball
        >>> learner = Doubling(lambda rounds: SwordPP(Ball(1.0), rounds, G=1.0, L=1.0, dim=2), first=4)
        >>> for _ in range(5):
        ...     x = learner.predict()
        ...     learner.update([1.0, 0.0])
        >>> learner.learner.horizon
        8
    """

    def __init__(self, make: Callable[[int], Any], first: int = 64) -> None:
        if not callable(make):
            bad_type("make", make, "a function of the number of rounds")
        check_sizes(first=first)
        self._make, self.horizon, self.rounds = make, first, 0
        self.learner = make(first)

    def predict(self, hint: Any = None) -> Tensor:
        """The point to play in this round, see the learner's ``predict``."""
        if self.learner.rounds >= self.horizon:
            self.horizon *= 2
            self.learner = self._make(self.horizon)
        return self.learner.predict(hint)

    def update(self, grad: Gradient, loss: Any = None) -> None:
        """Take in what happened in this round, see the learner's ``update``."""
        self.learner.update(grad, loss)
        self.rounds += 1
