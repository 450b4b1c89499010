"""LU factors that solve from either side by triangular solves, and an estimate of a condition number.

``torch.linalg.lu_solve`` takes three times as long on row-major right-hand sides as two triangular solves do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__: list[str] = []

#: A pivot below this many units of rounding of the largest one makes a matrix singular to working precision.
SMALLEST_PIVOT = 32.0


@dataclass(frozen=True)
class Factors:
    """``A = P L R``, with ``order[i]`` the row of ``L R`` that is row i of A."""

    lu: Tensor
    order: Tensor

    def solve_right(self, b: Tensor) -> Tensor:
        """X with ``X A = b``; b is ``(m, d)``."""
        y = torch.linalg.solve_triangular(self.lu, b, upper=True, left=False)
        y = torch.linalg.solve_triangular(self.lu, y, upper=False, left=False, unitriangular=True)
        return y.index_select(1, self.order)

    def solve_left(self, b: Tensor) -> Tensor:
        """X with ``A X = b``; b is ``(d, m)``."""
        y = b.index_select(0, self.order.argsort())
        y = torch.linalg.solve_triangular(self.lu, y, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(self.lu, y, upper=True)

    def inverse(self) -> Tensor:
        """The inverse of A."""
        return self.solve_right(torch.eye(len(self.lu), dtype=self.lu.dtype, device=self.lu.device))


def factor(a: Tensor) -> Factors | None:
    """LU factors of a square matrix; None if it is singular to working precision or holds NaN."""
    lu, pivots, info = torch.linalg.lu_factor_ex(a)
    diagonal = lu.diagonal().abs()
    smallest, largest = diagonal.aminmax()
    if int(info) != 0 or not bool(smallest > SMALLEST_PIVOT * torch.finfo(a.dtype).eps * largest):
        return None
    permutation, _, _ = torch.lu_unpack(lu, pivots, unpack_data=False)
    return Factors(lu, permutation.argmax(1))


def divide_near_identity(a: Tensor, b: Tensor) -> Tensor | None:
    """``(I - a)^{-1} b``; a is ``(m, m)`` and, in small steps, small. None if it is singular to working precision.

    The product ``(I + a)(I + a^2)(I + a^4)...`` is cut off where the next factor is the identity to rounding. That
    takes a few matrix products, and the triangular solves of an LU factorisation reach a third of their speed.
    """
    size = float(torch.linalg.matrix_norm(a))
    if not size < 0.25:
        factors = factor(torch.eye(len(a), dtype=a.dtype, device=a.device).sub_(a))
        return None if factors is None else factors.solve_left(b)
    power, x, size = a, torch.addmm(b, a, b), size**2
    while size > 0.25 * torch.finfo(a.dtype).eps:
        power = power @ power
        x, size = torch.addmm(x, power, x), size**2
    return x


def condition_estimate(a: Tensor, inverse: Tensor) -> float:
    """2-norm condition number of ``a``, a little too small, by power iteration on ``a`` and its ``inverse``."""
    return _norm_estimate(a) * _norm_estimate(inverse)


def _norm_estimate(a: Tensor, iterations: int = 12, columns: int = 4) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(a), columns, generator=generator, dtype=torch.float64).to(a)
    for _ in range(iterations):
        x = a.mT @ (a @ (x / torch.linalg.vector_norm(x, dim=0)))
    return float(torch.linalg.vector_norm(x, dim=0).max()) ** 0.5


def refined_inverse(a: Tensor, inverse: Tensor) -> Tensor:
    """One Newton step, which squares the error of an approximate inverse."""
    residual = torch.eye(len(a), dtype=a.dtype, device=a.device).addmm_(a, inverse, alpha=-1.0)
    return torch.addmm(inverse, inverse, residual)
