r"""A primal-dual interior-point method for the matrix inequality of a :class:`Form`.

    minimise cost·θ   subject to   M(θ) = diag(θ[own]) - seen^T diag(θ[of]) seen - fixed ≥ 0,   θ ≥ 0

Every variable stands on some diagonal entries (``own``) and behind some rows (``of``), so the linear system of a step
is an element-wise product of two small matrices: no step costs more than a few products of the size of M. The steps are
those of Helmberg, Rendl, Vanderbei and Wolkowicz with Mehrotra's correction. θ is feasible all the time, so every
iterate proves a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__: list[str] = []

_MOST = 100
#: How much of the way to the boundary a step goes.
_SHARE = 0.95


@dataclass(frozen=True)
class Inequality:
    """See the module.

    Attributes:
        seen: (k, m).
        own: (m,), variable on each diagonal entry.
        of: (k,), variable of each row.
        fixed: (m, m).
        cost: (variables,).
    """

    seen: Tensor
    own: Tensor
    of: Tensor
    fixed: Tensor
    cost: Tensor

    def linear(self, theta: Tensor) -> Tensor:
        """M without what is fixed."""
        return torch.diag(theta[self.own]) - self.seen.mT @ (theta[self.of][:, None] * self.seen)

    def adjoint(self, dual: Tensor) -> Tensor:
        """What each variable contributes to ⟨M, dual⟩."""
        found = torch.zeros_like(self.cost).index_add_(0, self.own, dual.diagonal())
        return found.index_add_(0, self.of, -((self.seen @ dual) * self.seen).sum(1))

    def all_products(self, matrix: Tensor) -> Tensor:
        """F matrix F^T with F the identity above ``seen``."""
        rows = self.seen @ matrix
        return torch.cat((torch.cat((matrix, rows.mT), 1), torch.cat((rows, rows @ self.seen.mT), 1)))

    def normal_matrix(self, inverse: Tensor, dual: Tensor) -> Tensor:
        """⟨F_i, inverse F_j dual⟩ for all pairs of variables, F_i what variable i contributes to M."""
        squares = self.all_products(inverse).mul_(self.all_products(dual))
        signs = torch.cat((torch.ones(len(self.own)), -torch.ones(len(self.of)))).to(inverse)
        squares.mul_(signs[:, None]).mul_(signs)
        index, count = torch.cat((self.own, self.of)), len(self.cost)
        rows = inverse.new_zeros(count, len(index)).index_add_(0, index, squares)
        return inverse.new_zeros(count, count).index_add_(1, index, rows)


@dataclass
class _Point:
    """θ with the factor of M(θ), and the dual variables of both inequalities."""

    theta: Tensor
    factor: Tensor
    dual: Tensor
    prices: Tensor

    def product(self) -> float:
        """What complementarity lacks."""
        primal = self.factor.mT @ self.dual @ self.factor
        return float(primal.diagonal().sum()) + float(self.theta @ self.prices)


@dataclass
class _Step:
    theta: Tensor
    matrix: Tensor
    dual: Tensor
    prices: Tensor


def minimise(problem: Inequality, theta: Tensor, tol: float) -> tuple[Tensor, bool]:
    """Follow the central path from the feasible ``theta``.

    Returns:
        The best feasible point, and whether its cost is within about the relative ``tol`` of the least.
    """
    point = _first(problem, theta)
    size = len(problem.own) + len(theta)
    for _ in range(_MOST if point is not None else 0):
        assert point is not None
        theta = point.theta
        cost = float(problem.cost @ theta)
        missing = problem.cost - problem.adjoint(point.dual) - point.prices
        gap = point.product()
        if gap <= tol * cost and float((missing * theta).abs().sum()) <= tol * cost:
            return theta, True
        following = _advance(problem, point, gap / size)
        if following is None or not bool(following.theta.isfinite().all()):
            break
        point = following
    return theta, False


def _first(problem: Inequality, theta: Tensor) -> _Point | None:
    """Duals on the central path for a barrier of about the cost itself."""
    factor, failed = torch.linalg.cholesky_ex(problem.linear(theta) - problem.fixed)
    if int(failed):
        return None
    level = float(problem.cost @ theta) / (len(problem.own) + len(theta))
    return _Point(theta, factor, level * torch.cholesky_inverse(factor), level / theta)


def _advance(problem: Inequality, point: _Point, level: float) -> _Point | None:
    """One predictor-corrector step; None where rounding stops it."""
    inverse = torch.cholesky_inverse(point.factor)
    normal = problem.normal_matrix(inverse, point.dual)
    normal.diagonal().add_(point.prices / point.theta)
    scale = normal.diagonal().clamp_min(1e-300).rsqrt()
    solver, failed = torch.linalg.cholesky_ex(normal * (scale[:, None] * scale))
    if int(failed):
        return None

    def direction(target: float, ahead: _Step | None) -> _Step:
        right = target * (problem.adjoint(inverse) + 1.0 / point.theta) - problem.cost
        bent = torch.zeros_like(inverse) if ahead is None else inverse @ ahead.matrix @ ahead.dual
        bent = 0.5 * (bent + bent.mT)
        more = 0.0 if ahead is None else ahead.theta * ahead.prices / point.theta
        right = right - problem.adjoint(bent) - more
        theta = scale * torch.cholesky_solve((scale * right)[:, None], solver)[:, 0]
        matrix = problem.linear(theta)
        moved = inverse @ matrix @ point.dual
        dual = target * inverse - point.dual - 0.5 * (moved + moved.mT) - bent
        prices = target / point.theta - point.prices - point.prices * theta / point.theta - more
        return _Step(theta, matrix, dual, prices)

    ahead = direction(0.0, None)
    lengths = _lengths(point, ahead)
    reached = _moved(point, ahead, *lengths)
    left = max(float((reached[0] * reached[1]).sum() + reached[2] @ reached[3]), 0.0)
    share = left / (level * (len(problem.own) + len(point.theta)))
    step = direction(level * min(max(share**2, 1e-4), 0.8), ahead)
    primal, dual = _lengths(point, step)
    for _ in range(30):  # rounding may find a shorter step outside
        _, dual_matrix, theta, prices = _moved(point, step, primal, dual)
        factor, failed = torch.linalg.cholesky_ex(problem.linear(theta) - problem.fixed)
        if not int(failed) and bool((theta > 0).all()):
            return _Point(theta, factor, dual_matrix, prices) if primal > 1e-8 else None
        primal *= 0.7
    return None


def _lengths(point: _Point, step: _Step) -> tuple[float, float]:
    """How far primal and dual variables may go."""
    primal = min(_room(point.factor, step.matrix), _ratio(point.theta, step.theta))
    factor, failed = torch.linalg.cholesky_ex(point.dual)
    dual = 0.0 if int(failed) else min(_room(factor, step.dual), _ratio(point.prices, step.prices))
    return min(1.0, _SHARE * primal), min(1.0, _SHARE * dual)


def _room(factor: Tensor, change: Tensor) -> float:
    """The largest t for which factor factor^T + t change is positive semidefinite."""
    half = torch.linalg.solve_triangular(factor, change, upper=False)
    scaled = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    least = float(torch.linalg.eigvalsh(0.5 * (scaled + scaled.mT))[0])
    return -1.0 / least if least < 0 else 1e6


def _ratio(values: Tensor, change: Tensor) -> float:
    least = float((change / values).min())
    return -1.0 / least if least < 0 else 1e6


def _moved(point: _Point, step: _Step, primal: float, dual: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrix = point.factor @ point.factor.mT + primal * step.matrix
    return matrix, point.dual + dual * step.dual, point.theta + primal * step.theta, point.prices + dual * step.prices
