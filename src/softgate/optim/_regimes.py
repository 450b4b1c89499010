"""The regularisers of optimistic mirror descent: how a centre moves against a gradient, and what a round teaches.

A regime keeps its centre in its own coordinates: a point, or logits on the simplex. ``move`` is the argmin of
``⟨v, x⟩ + D(x, centre)``, used with the hint for the point to play and with the gradient for the next centre: the same
step in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from softgate.optim.domains import Domain

__all__: list[str] = []

#: The inverse of the matrix of the exp-concave regime is computed anew after so many updates of rank one.
REFACTOR = 256
#: Logits are shifted so that the largest is 0 every so many rounds: rounding grows with what they have drifted to.
RECENTRE = 16
#: From this dimension on the exp-concave regime keeps the diagonal only.
LARGEST_MATRIX = 2000


#: A constant step size, or one for every round 1, 2, ….
Eta = float | Callable[[int], float] | None


class Regime:
    """A Euclidean step of constant size; the other regimes change the step, the norm or the geometry.

    Args:
        domain: where the points lie.
        eta: step size, or the function that gives it for rounds 1, 2, …; None where a subclass finds its own.
    """

    #: Names of the tensors that rounds change.
    state: tuple[str, ...] = ()

    def __init__(self, domain: Domain, eta: Eta = None) -> None:
        self.domain, self.eta = domain, eta

    def prepare(self, start: Tensor) -> Tensor:
        """Make the state for streams that begin at ``start``, ``(*batch, d)``; returns the first centre."""
        return start

    def step(self, rounds: int) -> Tensor | float:
        """Step size after ``rounds`` finished rounds, broadcastable to points."""
        assert self.eta is not None
        return self.eta(rounds + 1) if callable(self.eta) else self.eta

    def move(self, center: Tensor, v: Tensor, rounds: int) -> Tensor:
        """The next centre against ``v``."""
        return self.domain.project(center - self.step(rounds) * v)

    def point(self, center: Tensor, rounds: int) -> Tensor:
        """The point of a centre."""
        return center

    def play(self, center: Tensor, m: Tensor, rounds: int) -> Tensor:
        """The point to play: that of the centre moved against the hint."""
        return self.point(self.move(center, m, rounds), rounds)

    def corrected(self, g: Tensor, m: Tensor, rounds: int) -> Tensor:
        """The gradient that moves the centre."""
        return g

    def observe(self, g: Tensor, m: Tensor) -> None:
        """Learn from a finished round: gradient and hint."""


class Convex(Regime):
    """``η_t = D / √(δ + 4G² + Σ_{s<t} ‖g_s - m_s‖²)``: convex and smooth losses.

    The root is accumulated instead of the sum, so that no square overflows.
    """

    state = ("root", "largest")

    def __init__(self, domain: Domain, D: float, G: float | None, delta: float) -> None:
        super().__init__(domain)
        self.D, self.G, self.delta = D, G, delta
        self._warned = False

    def prepare(self, start: Tensor) -> Tensor:
        """See :class:`Regime`."""
        zero = torch.zeros_like(start[..., :1], dtype=torch.float64)
        self.root, self.largest = zero + self.delta**0.5, zero + (self.G or 0.0)
        self.dtype = start.dtype
        return start

    def step(self, rounds: int) -> Tensor:
        """See :class:`Regime`; the running maximum of the gradients' norms stands for G where it is not given."""
        return (self.D / torch.hypot(2.0 * self.largest, self.root)).to(self.dtype)

    def observe(self, g: Tensor, m: Tensor) -> None:
        """See :class:`Regime`; warns once where a gradient is longer than G."""
        norm = torch.linalg.vector_norm(g, dim=-1, keepdim=True, dtype=torch.float64)
        if self.G is None:
            self.largest = torch.maximum(self.largest, norm)
        elif not self._warned and float(norm.max()) > self.G * (1.0 + 1e-6):
            self._warned = True
            warnings.warn(f"a gradient has norm {float(norm.max()):.3g} and G is {self.G:g}: the bound on the regret "
                          "does not hold, the learner goes on", stacklevel=4)  # fmt: skip
        miss = torch.linalg.vector_norm(g - m, dim=-1, keepdim=True, dtype=torch.float64)
        self.root = torch.hypot(self.root, miss)


class StronglyConvex(Regime):
    """``η_t = 2 / (λ t)``: λ-strongly convex losses. The 2 pays for the distance between point and centre."""

    def __init__(self, domain: Domain, lam: float) -> None:
        super().__init__(domain)
        self.lam = lam

    def step(self, rounds: int) -> float:
        """See :class:`Regime`."""
        return 2.0 / (self.lam * (rounds + 1))


class ExpConcave(Regime):
    """The norm of ``H_t = (1 + βG²/2) I + β/2 Σ_{s<t} g_s g_sᵀ``: α-exp-concave losses, a Newton step."""

    def __init__(self, domain: Domain, beta: float, G: float, diagonal: bool) -> None:
        super().__init__(domain)
        self.beta, self.G, self.diagonal = beta, G, diagonal
        self.state = ("H",) if diagonal else ("H", "inverse", "age")

    def prepare(self, start: Tensor) -> Tensor:
        """See :class:`Regime`."""
        first = 1.0 + 0.5 * self.beta * self.G**2
        self.H = torch.full_like(start, first, dtype=torch.float64)
        if not self.diagonal:
            self.H = torch.diag_embed(self.H)
            self.inverse = self.H / first**2
            self.age = torch.zeros((), dtype=torch.int64)
        return start

    def move(self, center: Tensor, v: Tensor, rounds: int) -> Tensor:
        """See :class:`Regime`."""
        wide = v.double()
        step = wide / self.H if self.diagonal else (self.inverse @ wide.unsqueeze(-1)).squeeze(-1)
        return self.domain.project_in_norm(center.double() - step, self.H).to(center.dtype)

    def observe(self, g: Tensor, m: Tensor) -> None:
        """See :class:`Regime`; the inverse by Sherman and Morrison."""
        g = g.double()
        if self.diagonal:
            self.H = self.H + 0.5 * self.beta * g.square()
            return
        column = g.unsqueeze(-1)
        self.H = self.H + 0.5 * self.beta * column * column.mT
        self.age = self.age + 1
        if int(self.age) % REFACTOR == 0:
            self.inverse = torch.linalg.inv(self.H)
            return
        u = self.inverse @ column
        self.inverse = self.inverse - u * u.mT / (2.0 / self.beta + column.mT @ u)


class Entropy(Regime):
    """Optimistic Hedge: the centre is a vector of logits, the step ``min(ε_max, c / √(1 + Σ_{s<t} ‖g_s - m_s‖²_∞))``.

    Args:
        domain: the simplex.
        eta: constant step, None for the one above.
        scale: c.
        eta_max: ε_max.
        lazy: the centre is the sum of the losses and today's step multiplies all of it (follow the regularised
            leader), instead of logits to which each loss was added with the step of its own round.
        correct: add ``ε_t (g_t - m_t)²`` to the loss that moves the centre.
    """

    state = ("root",)

    def __init__(
        self, domain: Domain, eta: Eta, scale: float = 1.0, eta_max: float = float("inf"),
        lazy: bool = False, correct: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(domain, eta)
        self.scale, self.eta_max, self.lazy, self.correct = scale, eta_max, lazy, correct

    def prepare(self, start: Tensor) -> Tensor:
        """See :class:`Regime`."""
        self.root = torch.ones_like(start[..., :1], dtype=torch.float64)
        self.prior = start.log()
        return torch.zeros_like(start) if self.lazy else self.prior

    def step(self, rounds: int) -> Tensor | float:
        """See :class:`Regime`."""
        if self.eta is not None:
            return super().step(rounds)
        return (self.scale / self.root).clamp(max=self.eta_max).to(self.prior.dtype)

    def _added(self, center: Tensor, v: Tensor, rounds: int) -> Tensor:
        step = 1.0 if self.lazy else -self.step(rounds)
        return torch.add(center, v, alpha=step) if isinstance(step, float) else torch.addcmul(center, step, v)

    def move(self, center: Tensor, v: Tensor, rounds: int) -> Tensor:
        """See :class:`Regime`; now and then the largest weight gets the logit or the loss 0: only differences count."""
        moved = self._added(center, v, rounds)
        if rounds % RECENTRE:
            return moved
        return moved - (moved.amin(-1, keepdim=True) if self.lazy else moved.amax(-1, keepdim=True))

    def play(self, center: Tensor, m: Tensor, rounds: int) -> Tensor:
        """See :class:`Regime`."""
        return self.point(self._added(center, m, rounds), rounds)

    def point(self, center: Tensor, rounds: int) -> Tensor:
        """See :class:`Regime`."""
        return torch.softmax(self.prior - self.step(rounds) * center if self.lazy else center, -1)

    def corrected(self, g: Tensor, m: Tensor, rounds: int) -> Tensor:
        """See :class:`Regime`."""
        return g + self.step(rounds) * (g - m).square() if self.correct else g

    def observe(self, g: Tensor, m: Tensor) -> None:
        """See :class:`Regime`."""
        if self.eta is None:
            self.root = torch.hypot(self.root, (g - m).abs_().amax(-1, keepdim=True).double())
