"""Curvatures that are never written out: banded ones and those that are known by their products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import ArgumentValueError, StateError, bad_type, check_choice
from softgate.optim._curvature import Curvature, DenseCurvature, all_finite, check_definite
from softgate.optim._metric import DiagonalMetric, Metric, as_metric, check_symmetric

__all__: list[str] = []

#: Side of the blocks that a band is cut into: large enough that few steps follow each other.
BLOCK = 32
#: Residual of an inexact solve against λ‖h‖: safe, as the step is accepted by what it does.
INEXACT = 0.1
#: A Lanczos vector that is shorter than this, against the largest Rayleigh quotient, is rounding.
EXHAUSTED = 1e-14


class BandedCurvature(Curvature):
    """``H = band + α v vᵀ``, solved in O(d s²) as a block tridiagonal matrix with blocks of s = max(width, 32).

    A metric that is not diagonal fills the band: then the matrix is written out.

    Args:
        bands: (w + 1, d), lower bands: ``bands[k, i] = H[i + k, i]``; what sticks out of the matrix is not read.
        alpha: α ≥ 0.
        v: (d,), or None.

    Example:
        >>> H = BandedCurvature(torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, 0.0]]))
        >>> H.solve(torch.tensor([1.0, 0.0, 1.0]), 0.0).round(decimals=4).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, bands: Tensor, alpha: float = 0.0, v: Tensor | None = None) -> None:
        check_float_tensor("bands", bands)
        if bands.ndim != 2 or not 1 <= bands.shape[0] <= bands.shape[1]:
            raise ArgumentValueError(f"bands must have shape (width + 1, d), width below d, got {tuple(bands.shape)}")
        if v is not None and tuple(check_float_tensor("v", v).shape) != (bands.shape[1],):
            raise ArgumentValueError(f"v must have shape ({bands.shape[1]},), got {tuple(v.shape)}")
        if not alpha >= 0.0:
            raise ArgumentValueError(f"alpha must not be negative, got {alpha!r}")
        super().__init__(bands.shape[1])
        self.bands, self.alpha, self.v = bands, float(alpha), v

    def matvec(self, v: Tensor) -> Tensor:
        """``H v``."""
        made = self.bands[0] * v
        for k in range(1, self.bands.shape[0]):
            band = self.bands[k, :-k]
            made[k:] += band * v[:-k]
            made[:-k] += band * v[k:]
        return made if self.v is None else made + self.alpha * torch.dot(self.v, v) * self.v

    def dense(self) -> Tensor:
        """H, (d, d)."""
        made = torch.diag(self.bands[0])
        for k in range(1, self.bands.shape[0]):
            band = self.bands[k, :-k]
            made += torch.diag(band, -k) + torch.diag(band, k)
        return made if self.v is None else made + self.alpha * torch.outer(self.v, self.v)

    def is_finite(self) -> bool:
        """Whether every entry is."""
        inside = (self.bands[k, : self.dim - k] for k in range(self.bands.shape[0]))
        return all_finite(self.v, *inside) and self.alpha < float("inf")

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """See :meth:`Curvature.solve`."""
        metric = as_metric(metric, self.dim, self.bands)
        if not isinstance(metric, DiagonalMetric):
            return self.cholesky().solve(rhs, lam, metric)
        if self.v is None or self.alpha == 0.0:
            return self._solve_band(rhs[:, None], lam, metric)[:, 0]
        h, lifted = self._solve_band(torch.stack([rhs, self.v], 1), lam, metric).unbind(1)
        share = self.alpha * torch.dot(self.v, h) / (1.0 + self.alpha * torch.dot(self.v, lifted))
        return h - share * lifted

    def _blocks(self, lam: float, metric: DiagonalMetric) -> tuple[Tensor, Tensor]:
        """Diagonal blocks (n, s, s) and those below them (n - 1, s, s) of ``band + lam B``, filled up with ones."""
        width, d = self.bands.shape[0] - 1, self.dim
        s = min(max(width, BLOCK), d)
        n = -(-d // s)
        main = self.bands[0] + lam * metric.diagonal
        diagonal = torch.eye(s, dtype=main.dtype, device=main.device).repeat(n, 1, 1)
        below = main.new_zeros(max(n - 1, 0), s, s)
        columns = torch.arange(d, device=main.device)
        diagonal[columns // s, columns % s, columns % s] = main
        for k in range(1, width + 1):
            column = columns[:-k]
            row, block = column + k, column // s
            band, same = self.bands[k, :-k], row // s == block
            i, j = row % s, column % s
            diagonal[block[same], i[same], j[same]] = band[same]
            below[block[~same], i[~same], j[~same]] = band[~same]
        return diagonal, below

    def _solve_band(self, rhs: Tensor, lam: float, metric: DiagonalMetric) -> Tensor:
        """Block Cholesky: ``D_k - W_k W_kᵀ = L_k L_kᵀ`` with ``W_k = E_k L_(k-1)⁻ᵀ``, forward, then backward."""
        diagonal, below = self._blocks(lam, metric)
        n, s, _ = diagonal.shape
        padded = rhs.new_zeros(n * s, rhs.shape[1])
        padded[: self.dim] = rhs
        y = list(padded.reshape(n, s, -1).unbind(0))
        factors: list[Tensor] = []
        couplings: list[Tensor] = []
        infos: list[Tensor] = []
        for k in range(n):
            block = diagonal[k]
            if k:
                coupling = torch.linalg.solve_triangular(factors[-1], below[k - 1].mT, upper=False).mT
                block = block - coupling @ coupling.mT
                y[k] = y[k] - coupling @ y[k - 1]
                couplings.append(coupling)
            factor, info = torch.linalg.cholesky_ex(block)
            y[k] = torch.linalg.solve_triangular(factor, y[k], upper=False)
            factors.append(factor)
            infos.append(info)
        check_definite(torch.stack(infos), lam)
        for k in reversed(range(n)):
            if k + 1 < n:
                y[k] = y[k] - couplings[k].mT @ y[k + 1]
            y[k] = torch.linalg.solve_triangular(factors[k].mT, y[k], upper=True)
        return torch.cat(y)[: self.dim]


class MatVecCurvature(Curvature):
    """H known by its products with vectors: Hessian- or Gauss-Newton-vector products, operators of other libraries.

    Args:
        matvec: ``v -> H v`` for v (d,).
        dim: d.
        solver: ``"cg"``, preconditioned with the metric and started from the last solution, or ``"lanczos"``, whose
            one Krylov space serves every λ.
        tol: the residual's dual norm over ``λ ‖h‖`` at which a solve ends.
        max_iter: most products of one solve; None is 2 d + 10.
        dtype, device: of the matrix that :meth:`dense` gives.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        dim: int,
        solver: str = "cg",
        *,
        tol: float = INEXACT,
        max_iter: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: Any = "cpu",
    ) -> None:
        if not callable(matvec):
            bad_type("matvec", matvec, "a function of a vector")
        check_sizes(dim=dim)
        check_choice("solver", solver, ("cg", "lanczos"))
        super().__init__(dim)
        self._matvec, self.solver, self.tol = matvec, solver, tol
        self.dtype, self.device = dtype, device
        self.max_iter = max_iter or 2 * dim + 10
        self._krylov: _Krylov | None = None

    def matvec(self, v: Tensor) -> Tensor:
        """``H v``."""
        made = self._matvec(v)
        if not isinstance(made, Tensor) or made.shape != v.shape:
            what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ArgumentValueError(f"matvec must give a tensor of shape {tuple(v.shape)}, got {what}")
        return made

    def dense(self) -> Tensor:
        """H, (d, d), from d products."""
        eye = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        made = torch.stack([self.matvec(row) for row in eye], 1)
        return 0.5 * (made + made.mT)

    def is_finite(self) -> bool:
        """True: no entry is held. A product that is not finite is an error when it comes up."""
        return True

    def solve(self, rhs: Tensor, lam: float, metric: Any = None, start: Tensor | None = None) -> Tensor:
        """See :meth:`Curvature.solve`; up to the tolerance."""
        metric = as_metric(metric, self.dim, rhs)
        if self.solver == "lanczos":
            if self._krylov is None or not self._krylov.serves(rhs, metric):
                self._krylov = _Krylov(self.matvec, rhs, metric, self.max_iter)
            return self._krylov.solve(lam, self.tol)
        return self._solve_cg(rhs, lam, metric, start)

    def _solve_cg(self, rhs: Tensor, lam: float, metric: Metric, start: Tensor | None) -> Tensor:
        h = torch.zeros_like(rhs) if start is None else start.clone()
        r = rhs if start is None else rhs - self.matvec(h) - lam * metric.apply(h)
        z = metric.solve(r)
        p, square = z, float(torch.dot(r, z))
        for _ in range(self.max_iter):
            if square <= (self.tol * lam * metric.norm(h)) ** 2:
                break
            product = self.matvec(p) + lam * metric.apply(p)
            bend = float(torch.dot(p, product))
            _check_product(bend)
            if not bend > 0.0:
                raise StateError(f"H + lam B must be positive definite, which it is not at lam = {lam:.3g}")
            h = h + (square / bend) * p
            r = r - (square / bend) * product
            z = metric.solve(r)
            last, square = square, float(torch.dot(r, z))
            p = z + (square / last) * p
        return h


def _check_product(value: float) -> None:
    if not math.isfinite(value):
        raise ArgumentValueError("curvature must be finite, got a product with NaN or infinity")


class _Krylov:
    """Lanczos vectors of the whitened H from one right side on, fully reorthogonalised; they grow as λ falls."""

    def __init__(self, matvec: Callable[[Tensor], Tensor], rhs: Tensor, metric: Metric, most: int) -> None:
        self.matvec, self.rhs, self.metric = matvec, rhs, metric
        white = metric.whiten(rhs)
        self.size = float(torch.linalg.vector_norm(white))
        self.most = min(most, rhs.shape[0])
        self.basis = [white / self.size] if self.size > 0.0 else []
        self.alphas: list[float] = []
        self.betas: list[float] = []

    def serves(self, rhs: Tensor, metric: Metric) -> bool:
        return metric is self.metric and torch.equal(rhs, self.rhs)

    def _grow(self) -> None:
        q = self.basis[-1]
        w = self.metric.whiten(self.matvec(self.metric.unwhiten(q)))
        self.alphas.append(float(torch.dot(q, w)))
        _check_product(self.alphas[-1])
        known = torch.stack(self.basis, 1)
        for _ in range(2):  # twice is enough
            w = w - known @ (known.mT @ w)
        self.betas.append(float(torch.linalg.vector_norm(w)))
        self.basis.append(w / self.betas[-1] if self.betas[-1] > 0.0 else w)

    def _complete(self) -> bool:
        """No further vector can be had: all products are spent, or H maps the space into itself."""
        return len(self.alphas) >= self.most or self.betas[-1] <= EXHAUSTED * max(map(abs, self.alphas))

    def solve(self, lam: float, tol: float) -> Tensor:
        if self.size == 0.0:
            return torch.zeros_like(self.rhs)
        if not self.alphas:
            self._grow()
        while True:
            y = self._shifted(lam)
            if self._complete() or self.betas[-1] * abs(float(y[-1])) <= tol * lam * float(y.norm()):
                break
            for _ in range(1 + len(self.alphas) // 4):
                if not self._complete():
                    self._grow()
        return self.metric.unwhiten(torch.stack(self.basis[: len(self.alphas)], 1) @ y.to(self.rhs))

    def _shifted(self, lam: float) -> Tensor:
        """``(T + λI)⁻¹ e₁ ‖r‖`` in float64."""
        main = torch.tensor(self.alphas, dtype=torch.float64) + lam
        side = torch.tensor(self.betas[:-1], dtype=torch.float64)
        T = torch.diag(main) + torch.diag(side, 1) + torch.diag(side, -1)
        factor, info = torch.linalg.cholesky_ex(T)
        check_definite(info, lam)
        first = torch.zeros(len(self.alphas), 1, dtype=torch.float64)
        first[0] = self.size
        return torch.cholesky_solve(first, factor)[:, 0]


def as_curvature(made: Any, dim: int, like: Tensor) -> Curvature:
    """A curvature from what a user's function returned: one of these classes, a matrix, or an operator with ``@``."""
    if isinstance(made, Curvature):
        curvature = made
    elif isinstance(made, Tensor):
        if tuple(made.shape) != (dim, dim):
            raise ArgumentValueError(f"curvature must give a matrix of shape ({dim}, {dim}), got {tuple(made.shape)}")
        matrix = made.detach().to(like)
        if all_finite(matrix):
            check_symmetric("curvature", matrix)
        curvature = DenseCurvature(matrix)
    elif hasattr(made, "__matmul__"):
        curvature = MatVecCurvature(lambda v: made @ v, dim, dtype=like.dtype, device=like.device)
    else:
        bad_type(
            "curvature", made, "a name, a Curvature, or a function that gives a Curvature, a matrix or an operator"
        )
    if curvature.dim != dim:
        raise ArgumentValueError(f"curvature must be of size {dim}, got {curvature.dim}")
    if not curvature.is_finite():
        raise ArgumentValueError("curvature must be finite, got NaN or infinity")
    return curvature
