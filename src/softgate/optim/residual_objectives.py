"""Powers of residuals: systems of equations as ``‖u(x)‖^p / p``, with Gauss-Newton and Fisher curvatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.errors import ArgumentValueError, bad_type
from softgate.optim._curvature import Curvature, DenseCurvature, LowRankCurvature, RankOneCurvature
from softgate.optim._curvature_operators import BandedCurvature
from softgate.optim.objectives import Objective, check_matrix, gram

__all__ = ["ChebyshevChain", "LinearPowerResidual", "PowerResidual", "Rosenbrock"]


class PowerResidual(Objective):
    r"""``f(x) = ‖u(x)‖^p / p`` for residuals u (m,) with Jacobian J, p ≥ 2.

    Curvatures: ``"ggn"`` is ``‖u‖^{p-2} JᵀJ + (p-2) ‖u‖^{p-4} (Jᵀu)(Jᵀu)ᵀ``, ``"fisher"`` its second term alone, of
    rank one and parallel to the gradient, ``"exact"`` adds ``‖u‖^{p-2} Σ u_i ∇²u_i``, and may be indefinite. At a
    solution, u = 0, the terms have their limits.

    Args:
        u: residuals, a function of torch operations from (d,) to (m,).
        p: the power.
        dim: d; None takes vectors of any length that u does.

    Example:
        >>> f = PowerResidual(lambda x: x - 1.0, 2.0)
        >>> float(f(torch.zeros(3)))
        1.5

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    curvatures = ("exact", "ggn", "fisher")

    def __init__(self, u: Callable[[Tensor], Tensor], p: float, dim: int | None = None) -> None:
        if not callable(u):
            bad_type("u", u, "a function of a vector")
        self.p = check_number("p", p, low=2.0, high_open=True)
        if dim is not None:
            check_sizes(dim=dim)
        self.u, self.dim = u, dim

    def jacobian(self, x: Tensor) -> Tensor:
        """J, (m, d)."""
        return torch.func.jacrev(self.u)(x)

    def _pulled_back(self, x: Tensor, u: Tensor) -> Tensor:
        """``Jᵀu``."""
        return torch.func.vjp(self.u, x)[1](u)[0]

    def _second(self, x: Tensor, u: Tensor) -> Tensor:
        """``Σ u_i ∇²u_i``, (d, d)."""
        return torch.func.hessian(lambda z: torch.dot(self.u(z), u))(x)

    def _scales(self, u: Tensor) -> tuple[float, float]:
        """``‖u‖^{p-2}`` and ``(p-2) ‖u‖^{p-4}``, the second 0 at u = 0: what it multiplies vanishes faster."""
        size = float(torch.linalg.vector_norm(u.detach()))
        return size ** (self.p - 2.0), (self.p - 2.0) * size ** (self.p - 4.0) if size > 0.0 else 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Value at x (d,), a scalar."""
        return torch.linalg.vector_norm(self.u(x)) ** self.p / self.p

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Objective.value_and_grad`."""
        u = self.u(x)
        return torch.linalg.vector_norm(u) ** self.p / self.p, self._scales(u)[0] * self._pulled_back(x, u)

    def _curvature(self, name: str, x: Tensor) -> Curvature:
        u = self.u(x)
        outer, along = self._scales(u)
        pulled = self._pulled_back(x, u)
        if name == "fisher":
            return RankOneCurvature(along, pulled)
        return self._full(name, x, u, outer, along, pulled)

    def _full(self, name: str, x: Tensor, u: Tensor, outer: float, along: float, pulled: Tensor) -> Curvature:
        rows = torch.cat([outer**0.5 * self.jacobian(x), along**0.5 * pulled[None]])
        gauss_newton = LowRankCurvature(rows)
        return gauss_newton if name == "ggn" else DenseCurvature(gauss_newton.dense() + outer * self._second(x, u))


class LinearPowerResidual(PowerResidual):
    """``f(x) = ‖A x - b‖^p / p``; ``"exact"`` and ``"ggn"`` are equal and positive semidefinite.

    Args:
        A: (m, n), float32 or float64.
        b: (m,).
        p: the power, at least 2.

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    def __init__(self, A: Tensor, b: Tensor, p: float) -> None:
        self.A = check_matrix("A", A)
        self.b = check_float_tensor("b", b).detach()
        if tuple(self.b.shape) != (self.A.shape[0],):
            raise ArgumentValueError(f"b must have shape ({self.A.shape[0]},), got {tuple(self.b.shape)}")
        super().__init__(lambda x: self.A @ x - self.b, p, self.A.shape[1])
        self._square: Tensor | None = None

    def metric(self, ridge: float | None = 1e-3) -> Tensor:
        """``AᵀA + ridge I``, (n, n)."""
        return gram(self.A, ridge)

    def jacobian(self, x: Tensor) -> Tensor:
        """A."""
        return self.A

    def _pulled_back(self, x: Tensor, u: Tensor) -> Tensor:
        return self.A.mT @ u

    def _full(self, name: str, x: Tensor, u: Tensor, outer: float, along: float, pulled: Tensor) -> Curvature:
        if self.A.shape[0] + 1 < self.A.shape[1]:
            return LowRankCurvature(torch.cat([outer**0.5 * self.A, along**0.5 * pulled[None]]))
        if self._square is None:
            self._square = self.A.mT @ self.A
        return DenseCurvature(torch.addr(outer * self._square, pulled, pulled, alpha=along))


class Rosenbrock(PowerResidual):
    """Power of the residuals ``(1 - x₁, 10 (x₂ - x₁²))``; p = 2 is half of Rosenbrock's function.

    Args:
        p: the power, at least 2.

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    def __init__(self, p: float = 2.0) -> None:
        super().__init__(lambda x: torch.stack([1.0 - x[0], 10.0 * (x[1] - x[0] ** 2)]), p, 2)

    def jacobian(self, x: Tensor) -> Tensor:
        """J, (2, 2)."""
        J = x.new_tensor([[-1.0, 0.0], [0.0, 10.0]])
        J[1, 0] = -20.0 * x[0]
        return J

    def _pulled_back(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.stack([-u[0] - 20.0 * x[0] * u[1], 10.0 * u[1]])

    def _second(self, x: Tensor, u: Tensor) -> Tensor:
        made = x.new_zeros(2, 2)
        made[0, 0] = -20.0 * u[1]
        return made


class ChebyshevChain(PowerResidual):
    """Power of the residuals ``u₁ = (1 - x₁)/2``, ``u_i = x_i - (2 x_{i-1}² - 1)``: a long curved valley.

    Its Jacobian is bidiagonal, so curvatures are banded matrices plus one of rank one.

    Args:
        n: variables, at least 2.
        p: the power, at least 2.

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    def __init__(self, n: int, p: float = 2.0) -> None:
        check_sizes(n=n)
        if n < 2:
            raise ArgumentValueError(f"n must be at least 2, got {n}")
        super().__init__(_chebyshev, p, n)
        self.n = n

    def start(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
        """``(-1, 1, …, 1)``, the usual start, (n,)."""
        x = torch.ones(self.n, dtype=dtype, device=device)
        x[0] = -1.0
        return x

    def jacobian(self, x: Tensor) -> Tensor:
        """J, (n, n)."""
        main = torch.ones_like(x)
        main[0] = -0.5
        return torch.diag(main) + torch.diag(-4.0 * x[:-1], -1)

    def _pulled_back(self, x: Tensor, u: Tensor) -> Tensor:
        made = u.clone()
        made[0] *= -0.5
        made[:-1] -= 4.0 * x[:-1] * u[1:]
        return made

    def _full(self, name: str, x: Tensor, u: Tensor, outer: float, along: float, pulled: Tensor) -> Curvature:
        """Bands of ``JᵀJ``: ``J_ii² + J_{i+1,i}²`` and ``J_{i+1,i} J_{i+1,i+1}``; ``∇²u_{i+1}`` is -4 at (i, i)."""
        side = -4.0 * x[:-1]
        bands = x.new_zeros(2, len(x))
        bands[0] = 1.0
        bands[0, 0] = 0.25
        bands[0, :-1] += side.square()
        bands[1, :-1] = side
        if name == "exact":
            bands[0, :-1] -= 4.0 * u[1:]
        return BandedCurvature(outer * bands, along, pulled)


def _chebyshev(x: Tensor) -> Tensor:
    return torch.cat([0.5 * (1.0 - x[:1]), x[1:] - (2.0 * x[:-1] ** 2 - 1.0)])
