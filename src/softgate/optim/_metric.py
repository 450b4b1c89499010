"""The metric B of a regularised Newton step: its norm, the dual norm, and solves with it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type

__all__: list[str] = []

#: How far from symmetric a matrix may be, in units of the rounding of its largest entry.
ASYMMETRY = 1e3


class Metric(ABC):
    """A positive definite matrix B, (d, d): ``‖h‖² = ⟨Bh, h⟩`` for steps, ``‖g‖²_* = ⟨g, B⁻¹g⟩`` for gradients."""

    def norm(self, h: Tensor) -> float:
        """``√⟨Bh, h⟩``."""
        return float(torch.dot(self.apply(h), h).clamp(min=0.0).sqrt())

    def dual(self, g: Tensor) -> float:
        """``√⟨g, B⁻¹g⟩``."""
        return float(torch.linalg.vector_norm(self.whiten(g)))

    @abstractmethod
    def apply(self, v: Tensor) -> Tensor:
        """``B v``."""

    @abstractmethod
    def solve(self, g: Tensor) -> Tensor:
        """``B⁻¹ g`` of a vector or of columns."""

    @abstractmethod
    def whiten(self, g: Tensor) -> Tensor:
        """``L⁻¹ g`` where ``B = L Lᵀ``."""

    @abstractmethod
    def unwhiten(self, h: Tensor) -> Tensor:
        """``L⁻ᵀ h``: from whitened steps to steps."""

    @abstractmethod
    def added_to(self, matrix: Tensor, lam: float) -> Tensor:
        """``matrix + lam B``, a new matrix."""


class DiagonalMetric(Metric):
    """``B = diag(b)``; the identity with one entry 1 for all."""

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal
        self.root = diagonal.sqrt()

    def _of(self, part: Tensor, v: Tensor) -> Tensor:
        return part if part.ndim == 0 or v.ndim == 1 else part[:, None]

    def apply(self, v: Tensor) -> Tensor:
        """``B v``."""
        return self._of(self.diagonal, v) * v

    def solve(self, g: Tensor) -> Tensor:
        """``B⁻¹ g``."""
        return g / self._of(self.diagonal, g)

    def whiten(self, g: Tensor) -> Tensor:
        """``B^(-1/2) g``."""
        return g / self._of(self.root, g)

    def unwhiten(self, h: Tensor) -> Tensor:
        """``B^(-1/2) h``."""
        return h / self._of(self.root, h)

    def added_to(self, matrix: Tensor, lam: float) -> Tensor:
        """``matrix + lam B``; of a stack of blocks, ``(blocks, s, s)``, each with its part of the diagonal."""
        made = matrix.clone()
        main = made.diagonal(dim1=-2, dim2=-1)
        main += lam * (self.diagonal if self.diagonal.ndim == 0 else self.diagonal.reshape(main.shape))
        return made


class DenseMetric(Metric):
    """A full matrix, factored once."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0:
            raise ArgumentValueError(f"metric must be positive definite, got a matrix whose leading minor {int(info)} "
                                     "is not")  # fmt: skip

    def apply(self, v: Tensor) -> Tensor:
        """``B v``."""
        return self.matrix @ v

    def solve(self, g: Tensor) -> Tensor:
        """``B⁻¹ g``."""
        return torch.cholesky_solve(g, self.factor) if g.ndim == 2 else self.solve(g[:, None])[:, 0]

    def whiten(self, g: Tensor) -> Tensor:
        """``L⁻¹ g``."""
        if g.ndim == 1:
            return self.whiten(g[:, None])[:, 0]
        return torch.linalg.solve_triangular(self.factor, g, upper=False)

    def unwhiten(self, h: Tensor) -> Tensor:
        """``L⁻ᵀ h``."""
        if h.ndim == 1:
            return self.unwhiten(h[:, None])[:, 0]
        return torch.linalg.solve_triangular(self.factor.mT, h, upper=True)

    def added_to(self, matrix: Tensor, lam: float) -> Tensor:
        """``matrix + lam B``."""
        return torch.add(matrix, self.matrix, alpha=lam)


@functools.cache
def _identity(dtype: torch.dtype, device: torch.device) -> DiagonalMetric:
    """One object per dtype and device: curvatures keep what belongs to the metric they met last."""
    with torch.inference_mode(False):
        return DiagonalMetric(torch.ones((), dtype=dtype, device=device))


def as_metric(metric: Any, dim: int, like: Tensor) -> Metric:
    """The metric that ``metric`` describes, of size ``dim`` in the dtype and on the device of ``like``.

    Args:
        metric: None for the identity, the diagonal (d,), a matrix (d, d), or an operator, anything with ``@``, which is
            applied to the identity once.
        dim: d.
        like: tensor to take dtype and device from.

    Raises:
        ArgumentTypeError: ``metric`` is none of these.
        ArgumentValueError: another shape, not symmetric, not finite, or not positive definite.
    """
    if isinstance(metric, Metric):
        return metric
    if metric is None:
        return _identity(like.dtype, like.device)
    if not isinstance(metric, Tensor):
        if not hasattr(metric, "__matmul__"):
            bad_type("metric", metric, "None, a tensor or an operator with @")
        metric = metric @ torch.eye(dim, dtype=like.dtype, device=like.device)
        if not isinstance(metric, Tensor):
            bad_type("metric", metric, "an operator that gives tensors")
    if not metric.dtype.is_floating_point:
        raise ArgumentTypeError(f"metric must have a real floating-point dtype, got {metric.dtype}")
    if tuple(metric.shape) not in ((dim,), (dim, dim)):
        raise ArgumentValueError(f"metric must have shape ({dim},) or ({dim}, {dim}), got {tuple(metric.shape)}")
    metric = metric.detach().to(like)
    if not bool(metric.isfinite().all()):
        raise ArgumentValueError("metric must be finite")
    if metric.ndim == 1:
        if not bool((metric > 0).all()):
            raise ArgumentValueError("metric must be positive definite, got a diagonal with an entry that is not "
                                     "positive")  # fmt: skip
        return DiagonalMetric(metric)
    check_symmetric("metric", metric)
    return DenseMetric(metric)


def check_symmetric(name: str, matrix: Tensor) -> None:
    """Raise unless ``matrix``, (d, d), is symmetric up to rounding."""
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    off = float((matrix - matrix.mT).abs().max()) if matrix.numel() else 0.0
    if off > ASYMMETRY * torch.finfo(matrix.dtype).eps * largest:
        raise ArgumentValueError(f"{name} must be symmetric, got a matrix that is {off:.2g} from its transpose")
