"""Positive semidefinite approximations of a Hessian, each with its cheapest solve of ``(H + λB) h = r``.

One curvature serves many λ: whatever does not depend on λ is kept from the first solve on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor
from softgate.errors import ArgumentValueError, StateError
from softgate.optim._metric import DiagonalMetric, Metric, as_metric

__all__: list[str] = []

#: Below this share of the largest entry of G B⁻¹Gᵀ, λ costs the Woodbury formula digits; they are refined.
REFINE_BELOW = 1e-6
#: Entries of a factor that are weighted and multiplied at a time: they stay in a core's cache.
CACHED = 2**16


class Curvature(ABC):
    """A symmetric matrix H, (d, d), that stands for a Hessian.

    Attributes:
        dim: d.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._dense: DenseCurvature | None = None

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """``H v`` for v (d,)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """H as a matrix (d, d)."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite, as far as entries are held."""

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """``(H + lam B)⁻¹ rhs``.

        Args:
            rhs: (d,).
            lam: λ ≥ 0.
            metric: B, see :func:`softgate.optim.minimize_gns`.
            start: a guess of the result, used by iterative solvers alone.

        Returns:
            (d,).

        Raises:
            StateError: ``H + lam B`` is not positive definite.
        """
        return self.cholesky().solve(rhs, lam, metric)

    def cholesky(self) -> DenseCurvature:
        """The same matrix, written out; made once."""
        if self._dense is None:
            self._dense = DenseCurvature(self.dense())
        return self._dense

    def woodbury(self) -> Curvature:
        """The same matrix, solved through its factor."""
        raise ArgumentValueError(f"solver must not be 'woodbury' for {type(self).__name__}, which has no low-rank form")


class DenseCurvature(Curvature):
    """A matrix that is written out; one Cholesky decomposition per λ.

    Args:
        H: (d, d), symmetric; only the lower triangle is read by :meth:`solve`.

    Example:
        >>> DenseCurvature(torch.eye(2)).solve(torch.tensor([2.0, 4.0]), 1.0).tolist()
        [1.0, 2.0]
    """

    def __init__(self, H: Tensor) -> None:
        check_float_tensor("H", H)
        if H.ndim != 2 or H.shape[0] != H.shape[1]:
            raise ArgumentValueError(f"H must be a square matrix, got shape {tuple(H.shape)}")
        super().__init__(H.shape[0])
        self.H = H

    def matvec(self, v: Tensor) -> Tensor:
        """``H v``."""
        return self.H @ v

    def dense(self) -> Tensor:
        """H itself."""
        return self.H

    def is_finite(self) -> bool:
        """Whether every entry is."""
        return all_finite(self.H)

    def clipped(self) -> DenseCurvature:
        """The nearest positive semidefinite matrix: negative eigenvalues become 0."""
        values, vectors = torch.linalg.eigh(self.H)
        return DenseCurvature((vectors * values.clamp(min=0.0)) @ vectors.mT)

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """See :meth:`Curvature.solve`."""
        shifted = as_metric(metric, self.dim, self.H).added_to(self.H, lam)
        factor, info = torch.linalg.cholesky_ex(shifted)
        check_definite(info, lam)
        return torch.cholesky_solve(rhs[:, None], factor)[:, 0]

    def cholesky(self) -> DenseCurvature:
        """Itself."""
        return self


def all_finite(*tensors: Tensor | None) -> bool:
    """Whether no entry is NaN or infinite: seen by the sums, one pass without a mask."""
    return all(math.isfinite(float(tensor.sum())) for tensor in tensors if tensor is not None)


def check_definite(info: Tensor, lam: float) -> None:
    """Raise if a Cholesky decomposition (or one of a stack) found a negative pivot."""
    if bool((info != 0).any()):
        raise StateError(f"H + lam B must be positive definite, which it is not at lam = {lam:.3g}")


class LowRankCurvature(Curvature):
    """``H = Gᵀ diag(w) G + diag(δ)``: Gauss-Newton, Fisher and weighted Gauss-Newton matrices.

    With fewer rows than columns and without δ it is solved in the space of the rows (Woodbury), or else written out.

    Args:
        G: (m, d).
        weight: w ≥ 0, (m,); None is 1 for all.
        diagonal: δ ≥ 0, (d,) or a scalar tensor; None is 0.
    """

    def __init__(self, G: Tensor, weight: Tensor | None = None, diagonal: Tensor | None = None) -> None:
        check_float_tensor("G", G)
        if G.ndim != 2:
            raise ArgumentValueError(f"G must be a matrix, got shape {tuple(G.shape)}")
        if weight is not None and tuple(check_float_tensor("weight", weight).shape) != (G.shape[0],):
            raise ArgumentValueError(f"weight must have shape ({G.shape[0]},), got {tuple(weight.shape)}")
        if weight is not None and bool((weight < 0).any()):
            raise ArgumentValueError(f"weight must not be negative, got {float(weight.min()):.3g}")
        super().__init__(G.shape[1])
        self.G, self.weight, self.diagonal = G, weight, diagonal
        self._gram: tuple[Metric, Tensor, Tensor, Tensor] | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """``Gᵀ (w · G v) + δ v``."""
        inner = self.G @ v
        made = self.G.mT @ (inner if self.weight is None else self.weight * inner)
        return made if self.diagonal is None else made + self.diagonal * v

    def _rows(self) -> Tensor:
        return self.G if self.weight is None else self.weight.sqrt()[:, None] * self.G

    def dense(self) -> Tensor:
        """H, (d, d)."""
        made = self.G.new_zeros(self.dim, self.dim)
        weights = self.G.new_ones(len(self.G)) if self.weight is None else self.weight
        count = max(1, CACHED // max(self.dim, 1))
        for rows, weight in zip(self.G.split(count), weights.split(count), strict=True):
            made.addmm_((weight[:, None] * rows).mT, rows)
        if self.diagonal is not None:
            made.diagonal().add_(self.diagonal)
        return made

    def is_finite(self) -> bool:
        """Whether every entry of the factor is."""
        return all_finite(self.G, self.weight, self.diagonal)

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """See :meth:`Curvature.solve`."""
        if self.diagonal is not None or self.G.shape[0] >= self.dim or lam <= 0.0:
            return self.cholesky().solve(rhs, lam, metric)
        return self.solve_by_rows(rhs, lam, metric)

    def woodbury(self) -> Curvature:
        """The same matrix, solved in the space of its rows."""
        if self.diagonal is not None:
            raise ArgumentValueError("solver must not be 'woodbury' for a curvature with a diagonal part")
        return _ByRows(self)

    def solve_by_rows(self, rhs: Tensor, lam: float, metric: Any = None) -> Tensor:
        """``(1/λ) B⁻¹ (r - Gᵀ (λI + G B⁻¹ Gᵀ)⁻¹ G B⁻¹ r)``; the m × m matrix is made once."""
        metric = as_metric(metric, self.dim, self.G)
        if self._gram is None or self._gram[0] is not metric:
            rows = self._rows()
            lifted = metric.solve(rows.mT)  # d × m
            self._gram = (metric, rows, lifted, rows @ lifted)
        _, rows, lifted, gram = self._gram
        shifted = gram.clone()
        shifted.diagonal().add_(lam)
        factor, info = torch.linalg.cholesky_ex(shifted)
        check_definite(info, lam)

        def once(r: Tensor) -> Tensor:
            z = metric.solve(r)
            return (z - lifted @ torch.cholesky_solve((rows @ z)[:, None], factor)[:, 0]) / lam

        h = once(rhs)
        if lam < REFINE_BELOW * float(gram.diagonal().max()):
            h = h + once(rhs - self.matvec(h) - lam * metric.apply(h))
        return h


class _ByRows(Curvature):
    """A low-rank matrix that is never written out."""

    def __init__(self, inner: LowRankCurvature) -> None:
        super().__init__(inner.dim)
        self.inner = inner

    def matvec(self, v: Tensor) -> Tensor:
        return self.inner.matvec(v)

    def dense(self) -> Tensor:
        return self.inner.dense()

    def is_finite(self) -> bool:
        return self.inner.is_finite()

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        return self.inner.solve_by_rows(rhs, lam, metric)


class RankOneCurvature(Curvature):
    """``H = α v vᵀ``, solved in O(d) for each λ once ``B⁻¹v`` is known (Sherman-Morrison).

    Args:
        alpha: α ≥ 0.
        v: (d,).
    """

    def __init__(self, alpha: float, v: Tensor) -> None:
        check_float_tensor("v", v)
        if v.ndim != 1:
            raise ArgumentValueError(f"v must be a vector, got shape {tuple(v.shape)}")
        if not alpha >= 0.0:
            raise ArgumentValueError(f"alpha must not be negative, got {alpha!r}")
        super().__init__(v.shape[0])
        self.alpha, self.v = float(alpha), v
        self._lifted: tuple[Metric, Tensor, float] | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """``α v ⟨v, x⟩``."""
        return self.alpha * torch.dot(self.v, v) * self.v

    def dense(self) -> Tensor:
        """H, (d, d)."""
        return self.alpha * torch.outer(self.v, self.v)

    def is_finite(self) -> bool:
        """Whether α and every entry of v are."""
        return all_finite(self.v) and self.alpha < float("inf")

    def woodbury(self) -> Curvature:
        """Itself: its solve is of that kind."""
        return self

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """See :meth:`Curvature.solve`."""
        if not lam > 0.0:
            raise StateError(f"H + lam B must be positive definite, which it is not at lam = {lam:.3g}")
        metric = as_metric(metric, self.dim, self.v)
        if self._lifted is None or self._lifted[0] is not metric:
            lifted = metric.solve(self.v)
            self._lifted = (metric, lifted, float(torch.dot(self.v, lifted)))
        _, lifted, square = self._lifted
        z = metric.solve(rhs)
        if self.alpha * square == 0.0:
            return z / lam
        along = torch.dot(self.v, z) / square
        return (z - along * lifted) / lam + along / (lam + self.alpha * square) * lifted


class BlockDiagCurvature(Curvature):
    """Blocks of equal size along the diagonal, one Cholesky decomposition of the stack per λ.

    A metric that is not diagonal couples the blocks: then the matrix is written out.

    Args:
        blocks: (blocks, s, s).
    """

    def __init__(self, blocks: Tensor) -> None:
        check_float_tensor("blocks", blocks)
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2]:
            raise ArgumentValueError(f"blocks must have shape (blocks, s, s), got {tuple(blocks.shape)}")
        super().__init__(blocks.shape[0] * blocks.shape[1])
        self.blocks = blocks

    def matvec(self, v: Tensor) -> Tensor:
        """``H v``, block by block."""
        return torch.einsum("bij,bj->bi", self.blocks, v.reshape(self.blocks.shape[:2])).reshape(-1)

    def dense(self) -> Tensor:
        """H, (d, d)."""
        return torch.block_diag(*self.blocks)

    def is_finite(self) -> bool:
        """Whether every entry is."""
        return all_finite(self.blocks)

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """See :meth:`Curvature.solve`."""
        metric = as_metric(metric, self.dim, self.blocks)
        if not isinstance(metric, DiagonalMetric):
            return self.cholesky().solve(rhs, lam, metric)
        factor, info = torch.linalg.cholesky_ex(metric.added_to(self.blocks, lam))
        check_definite(info, lam)
        return torch.cholesky_solve(rhs.reshape(*self.blocks.shape[:2], 1), factor).reshape(-1)
