"""Optimistic online mirror descent with the steps that adapt to stochastic and adversarial losses alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate.errors import ArgumentValueError, StateError, bad_type, check_choice
from softgate.optim import _regimes
from softgate.optim._online import Gradient, OnlineLearner
from softgate.optim.domains import Ball, Domain, Simplex, check_domain, diameter_of

__all__ = ["OptimisticOMD"]

REGIMES = ("convex", "strongly_convex", "exp_concave", "simplex")
HINTS = ("last", "zero", "middle")


class MirrorLearner(OnlineLearner):
    """Rounds of optimistic mirror descent in any regime; subclasses make the regime and say where to start."""

    def __init__(
        self, regime: _regimes.Regime, start: Tensor, batch_shape: Sequence[int], hint: Any, dtype: Any, device: Any
    ) -> None:
        super().__init__(len(start), batch_shape, dtype, device)
        if not callable(hint):
            check_choice("hint", hint, HINTS)
        self.hint, self.regime = hint, regime
        self._middle = self._zeros()
        self._center = regime.prepare(start.to(self.device, dtype).expand(self.shape).clone())

    def _state(self) -> dict[str, Tensor]:
        regime = {name: getattr(self.regime, name) for name in self.regime.state}
        return {**super()._state(), "_center": self._center, "_middle": self._middle, **regime}

    def _set_state(self, name: str, value: Tensor) -> None:
        setattr(self.regime if name in self.regime.state else self, name, value)

    @property
    def center(self) -> Tensor:
        """The centre ``x̂`` of the coming round as a point; what is played is :meth:`predict`."""
        return self.regime.point(self._center, self.rounds)

    @property
    def step_size(self) -> Tensor | float:
        """Step size ``η_t`` of the coming round, ``(*batch_shape, 1)`` or one number."""
        return self.regime.step(self.rounds)

    def _play(self, hint: Tensor | None) -> Tensor:
        if hint is None and self.hint == "zero":  # plain mirror descent: no second projection, not even its rounding
            self._m = self._zeros()
            return self.center
        if hint is None:
            hint = self._own_hint()
        self._m = hint
        return self.regime.play(self._center, hint, self.rounds)

    def _own_hint(self) -> Tensor:
        if callable(self.hint):
            return self._tensor("hint", self.hint(self.rounds + 1))
        return self._last if self.hint == "last" else self._middle

    def _learn(self, g: Tensor, gradient: Gradient) -> None:
        if self.hint == "middle" and not callable(gradient):
            raise StateError("grad must be the function that gives the gradient at a point where hint is 'middle'")
        self._center = self.regime.move(self._center, self.regime.corrected(g, self._m, self.rounds), self.rounds)
        self.regime.observe(g, self._m)
        if self.hint == "middle":
            assert callable(gradient)
            self._middle = self._tensor("grad", gradient(self.regime.point(self._center, self.rounds + 1)))


class OptimisticOMD(MirrorLearner):
    r"""Online learner that plays against a guess of the next gradient: by default that it is like the last one.

    .. math:: x_t = \arg\min_{x} \langle m_t, x\rangle + D_{R_t}(x, \hat x_t), \qquad
              \hat x_{t+1} = \arg\min_{x} \langle g_t, x\rangle + D_{R_t}(x, \hat x_t)

    With ``m_t = g_{t-1}`` the expected regret follows the variance of the gradients and their drift instead of the
    number of rounds. Regimes and their steps:

    ==================== =============================================================== =========================
    ``"convex"``         ``η_t = D / √(δ + 4G² + Σ_{s<t}‖g_s - m_s‖²)``                  G; D if unbounded
    ``"strongly_convex"`` ``η_t = 2 / (λt)``                                             lam
    ``"exp_concave"``    norm of ``(1 + βG²/2)I + β/2 Σ_{s<t} g_s g_sᵀ``, Newton step     G, D and alpha, or beta
    ``"simplex"``        entropy: optimistic Hedge with ``ε_t = 1/√(1 + Σ‖g_s - m_s‖²_∞)`` nothing
    ==================== =============================================================== =========================

    Where data are pure noise without drift a plain ``1/√t`` step is better by a constant factor. Memory: a few
    vectors, and two d × d matrices for ``"exp_concave"``.

    Args:
        dim: entries d of a point.
        domain: where points lie: ``Ball``, ``Box``, ``Simplex``, ``AffineSet``, ``Unconstrained``, ``Domain``.
        regime: what is known of the losses.
        G: bound on gradients' norms; ``"running"`` takes the largest norm so far, a heuristic without a bound on the
            regret. Longer gradients than G are warned of once.
        D: diameter, where the domain does not say it.
        lam: modulus of strong convexity.
        alpha: the losses' exp-concavity, from which ``β = ½ min(1/(4GD), α)``.
        beta: β itself; far larger ones than the theory's are needed to see a logarithmic regret.
        delta: δ > 0 of the convex step.
        eta: step size in place of the regime's (not for ``"exp_concave"``): a number, or a function of the round
            1, 2, … such as ``lambda t: 1 / t**0.5``.
        hint: ``"last"`` gradient, ``"zero"`` (plain mirror descent), ``"middle"`` (the last loss at the centre, a
            second gradient per round: ``update`` then takes a function), or a function of the round 1, 2, ….
        memory: ``"auto"``, ``"full"`` or ``"diagonal"`` matrix for ``"exp_concave"``; the diagonal, taken by itself
            above 2000 entries, is not covered by the theory.
        start: first centre ``(d,)``; by default the projection of 0.
        batch_shape: play that many independent streams at once.
        dtype: float64 or float32, of points; steps are accumulated in float64.
        device: where the state lies.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is not allowed, or one that the regime needs is missing.

    Example:
        >>> learner = OptimisticOMD(2, Ball(1.0), G=1.0)
        >>> for _ in range(300):
        ...     x = learner.predict()
        ...     learner.update(torch.tensor([0.6, 0.8], dtype=torch.float64))
        >>> [round(v, 3) for v in learner.predict().tolist()]
        [-0.6, -0.8]

    Paper: Chen, Zhang, Tu, Zhao and Zhang, Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial
    Online Convex Optimization, arXiv 2302.04552.
    """

    def __init__(
        self,
        dim: int,
        domain: Domain | None = None,
        regime: str = "convex",
        *,
        G: float | str | None = None,
        D: float | None = None,
        lam: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        delta: float = 1.0,
        eta: float | Callable[[int], float] | None = None,
        hint: str | Callable[[int], Any] = "last",
        memory: str = "auto",
        start: Tensor | Sequence[float] | None = None,
        batch_shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float64,
        device: str | torch.device | None = None,
    ) -> None:
        check_choice("regime", regime, REGIMES)
        check_choice("memory", memory, ("auto", "full", "diagonal"))
        if domain is None:
            domain = Simplex(dim) if regime == "simplex" else Ball(1.0)
        check_domain(domain, dim)
        for name, value in (("D", D), ("lam", lam), ("alpha", alpha), ("beta", beta), ("delta", delta), ("eta", eta)):
            if value is not None and not (name == "eta" and callable(value)):
                check_number(name, value, low=0.0, low_open=True, high_open=True)
        if isinstance(G, str):
            check_choice("G", G, ("running",))
        elif G is not None:
            check_number("G", G, low=0.0, low_open=True, high_open=True)
        self.domain = domain
        given = {"G": G, "D": D if D is not None else diameter_of(domain, dim), "lam": lam, "alpha": alpha,
                 "beta": beta, "delta": delta, "eta": eta}  # fmt: skip
        diagonal = memory == "diagonal" or (memory == "auto" and dim > _regimes.LARGEST_MATRIX)
        made = _make_regime(regime, domain, given, diagonal)
        first = start_of(domain, dim, start)
        super().__init__(made, first, batch_shape, hint, dtype, device)


def _make_regime(regime: str, domain: Domain, given: dict[str, Any], diagonal: bool) -> _regimes.Regime:
    if regime == "simplex":
        if not isinstance(domain, Simplex):
            bad_type("domain", domain, "a Simplex for regime 'simplex'")
        return _regimes.Entropy(domain, given["eta"])
    if given["eta"] is not None:
        if regime == "exp_concave":
            raise ArgumentValueError("eta must be None for regime 'exp_concave', whose step is a matrix: set beta")
        return _regimes.Regime(domain, given["eta"])
    if regime == "strongly_convex":
        _need(regime, given, "lam")
        return _regimes.StronglyConvex(domain, given["lam"])
    _need(regime, given, "G", "D")
    if regime == "convex":
        G = None if given["G"] == "running" else given["G"]
        return _regimes.Convex(domain, given["D"], G, given["delta"])
    if given["G"] == "running":
        raise ArgumentValueError("G must be a number for regime 'exp_concave', got 'running'")
    if given["beta"] is None:
        _need(regime, given, "alpha")
    beta = given["beta"] or 0.5 * min(1.0 / (4.0 * given["G"] * given["D"]), given["alpha"])
    return _regimes.ExpConcave(domain, beta, given["G"], diagonal)


def _need(regime: str, given: dict[str, Any], *names: str) -> None:
    hints = {"G": "a bound on the gradients' norms (or 'running')", "D": "the diameter, since domain is unbounded",
             "lam": "the modulus of strong convexity", "alpha": "the exp-concavity (or give beta)"}  # fmt: skip
    for name in names:
        if given[name] is None:
            raise ArgumentValueError(f"{name} must be given for regime {regime!r}: {hints[name]}")


def start_of(domain: Domain, dim: int, start: Any) -> Tensor:
    """The first centre, ``(dim,)``: that of the domain, or ``start`` if it is a point of the domain.

    Raises:
        ArgumentValueError: ``start`` has another shape, is not finite or lies outside.
    """
    if start is None:
        return domain.start(dim)
    try:
        first = torch.as_tensor(start, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        bad_type("start", start, f"numbers of shape ({dim},)")
    if tuple(first.shape) != (dim,) or not bool(first.isfinite().all()):
        raise ArgumentValueError(f"start must be {dim} finite numbers, got shape {tuple(first.shape)}")
    away = float((domain.project(first) - first).abs().max())
    if away > 1e-6 * (1.0 + float(first.abs().max())):
        raise ArgumentValueError(f"start must be a point of domain, got one that is {away:.2e} outside")
    return first
