"""Objectives with softmax inside: values, gradients and the curvatures that suit them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate.errors import ArgumentTypeError, ArgumentValueError, check_choice
from softgate.optim._curvature import BlockDiagCurvature, Curvature, LowRankCurvature

__all__ = ["LogSumExp", "LogisticRegression", "Objective", "SoftmaxRegression"]

#: What a singular ``AᵀA`` gets on its diagonal, against the mean of its diagonal.
TINY = 1e-12


class Objective(ABC):
    """A function of a vector that knows its gradient and curvatures; :func:`minimize_gns` takes it as ``fun``.

    Attributes:
        dim: length d of its argument; None if it takes vectors of any length.
        curvatures: names that :meth:`curvature` takes.
    """

    dim: int | None = None
    curvatures: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value (scalar) and gradient (d,) at x (d,)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Value at x (d,), a scalar."""
        return self.value_and_grad(x)[0]

    def curvature(self, name: str, x: Tensor) -> Curvature:
        """The approximation ``name``, one of :attr:`curvatures`, of the Hessian at x (d,).

        Raises:
            ArgumentValueError: ``name`` is none of them.
        """
        check_choice("curvature", name, self.curvatures)
        return self._curvature(name, x)

    @abstractmethod
    def _curvature(self, name: str, x: Tensor) -> Curvature: ...


def gram(A: Tensor, ridge: float | None = None) -> Tensor:
    """``AᵀA + ridge I``, (d, d); with None ``1e-12`` of its mean diagonal where there are fewer rows than columns."""
    made = A.mT @ A
    if ridge is None:
        ridge = TINY * float(made.diagonal().mean()) if A.shape[0] < A.shape[1] else 0.0
    made.diagonal().add_(ridge)
    return made


def check_matrix(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a finite matrix in float32 or float64 with at least one entry."""
    check_float_tensor(name, value)
    if value.dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"{name} must have dtype float32 or float64, got {value.dtype}: convert it first")
    if value.ndim != 2 or value.numel() == 0:
        raise ArgumentValueError(f"{name} must be a matrix with at least one entry, got shape {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ArgumentValueError(f"{name} must be finite")
    return value.detach()


class LogSumExp(Objective):
    r"""``f(x) = μ log Σ_i exp((⟨a_i, x⟩ - b_i) / μ)``: a smooth maximum of m affine functions.

    With ``π = softmax((Ax - b)/μ)`` the gradient is ``Aᵀπ``. Curvatures: ``"exact"`` is
    ``(Aᵀ diag(π) A - ∇f ∇fᵀ)/μ``, ``"wgn"`` (weighted Gauss-Newton) leaves the last term out; they differ by exactly
    ``∇f ∇fᵀ/μ``, which vanishes with the gradient.

    Args:
        A: (m, n), float32 or float64.
        b: (m,), or None for 0.
        mu: μ > 0, how far the maximum is smoothed, in units of f.

    Example:
        >>> f = LogSumExp(torch.eye(2, dtype=torch.float64), mu=1.0)
        >>> round(float(f(torch.zeros(2, dtype=torch.float64))), 4)
        0.6931

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    curvatures = ("exact", "wgn")

    def __init__(self, A: Tensor, b: Tensor | None = None, mu: float = 1.0) -> None:
        self.A = check_matrix("A", A)
        self.b = self.A.new_zeros(self.A.shape[0]) if b is None else check_float_tensor("b", b).detach()
        if tuple(self.b.shape) != (self.A.shape[0],):
            raise ArgumentValueError(f"b must have shape ({self.A.shape[0]},), got {tuple(self.b.shape)}")
        check_same_device(A=self.A, b=self.b)
        self.b = self.b.to(self.A.dtype)
        self.mu = check_number("mu", mu, low=0.0, low_open=True, high_open=True)
        self.dim = self.A.shape[1]

    @classmethod
    def with_optimum_at_zero(cls, A: Tensor, b: Tensor, mu: float) -> LogSumExp:
        """The function whose rows are ``a_i - ∇f(0)``: its gradient at 0 is 0, so its minimum is f(0)."""
        plain = cls(A, b, mu)
        return cls(plain.A - plain.value_and_grad(plain.A.new_zeros(plain.A.shape[1]))[1], b, mu)

    def metric(self) -> Tensor:
        """``AᵀA``, (n, n): in it no row is longer than 1. A singular one gets a tiny multiple of the identity."""
        return gram(self.A)

    def probabilities(self, x: Tensor) -> Tensor:
        """π, (m,)."""
        return torch.softmax((self.A @ x - self.b) / self.mu, 0)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Objective.value_and_grad`."""
        logits = (self.A @ x - self.b) / self.mu
        value = torch.logsumexp(logits, 0)
        return self.mu * value, self.A.mT @ (logits - value).exp()

    def _curvature(self, name: str, x: Tensor) -> Curvature:
        weight = self.probabilities(x)
        # rows less their mean, not the difference of two matrices: positive semidefinite also when rounded
        rows = self.A - self.A.mT @ weight if name == "exact" else self.A
        return LowRankCurvature(rows, weight / self.mu)


def _penalty(l2: Any, features: int, like: Tensor) -> Tensor:
    """Squared penalties per feature, (features,)."""
    if not isinstance(l2, Tensor):
        check_number("l2", l2, low=0.0, high_open=True)
        return like.new_full((features,), float(l2))
    if tuple(check_float_tensor("l2", l2).shape) != (features,) or not bool(((l2 >= 0) & l2.isfinite()).all()):
        raise ArgumentValueError(f"l2 must be a non-negative number or tensor of shape ({features},), got "
                                 f"shape {tuple(l2.shape)} or an entry below 0")  # fmt: skip
    return l2.detach().to(like)


class LogisticRegression(Objective):
    """``f(w) = (1/N) Σ log(1 + exp(-y_i ⟨x_i, w⟩)) + Σ_j l2_j w_j²/2``.

    Curvatures weight ``x_i x_iᵀ/N``, with ``q_i`` the probability given to the wrong class: ``"exact"`` (and
    ``"ggn"``, the same) by ``q (1 - q)``, ``"fisher"`` (empirical Fisher) by ``q²``, ``"majorizer"`` by 1/4.

    Args:
        X: (N, d), float32 or float64.
        y: (N,), -1 and 1, or 0 and 1, or booleans.
        l2: penalty, a number or one per feature, (d,).

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    curvatures = ("exact", "ggn", "fisher", "majorizer")

    def __init__(self, X: Tensor, y: Tensor, l2: float | Tensor = 0.0) -> None:
        X = check_matrix("X", X)
        if not isinstance(y, Tensor) or tuple(y.shape) != (X.shape[0],):
            raise ArgumentValueError(f"y must be a tensor of shape ({X.shape[0]},), got {getattr(y, 'shape', y)!r}")
        check_same_device(X=X, y=y)
        labels = y.detach().to(X.dtype)
        if bool(((labels == 0) | (labels == 1)).all()):
            labels = 2.0 * labels - 1.0
        if not bool((labels.abs() == 1).all()):
            raise ArgumentValueError("y must hold -1 and 1, or 0 and 1, got other values")
        self.Z = labels[:, None] * X
        self.dim = X.shape[1]
        self.l2 = _penalty(l2, X.shape[1], X)
        self._penalised = bool((self.l2 > 0).any())

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Objective.value_and_grad`."""
        margins = self.Z @ x
        value = torch.nn.functional.softplus(-margins).mean() + 0.5 * torch.dot(self.l2 * x, x)
        return value, self.l2 * x - self.Z.mT @ torch.sigmoid(-margins) / len(self.Z)

    def _curvature(self, name: str, x: Tensor) -> Curvature:
        wrong = torch.sigmoid(-(self.Z @ x))
        weight = {"fisher": wrong.square(), "majorizer": torch.full_like(wrong, 0.25)}.get(name, wrong * (1.0 - wrong))
        return LowRankCurvature(self.Z, weight / len(self.Z), self.l2 if self._penalised else None)


class SoftmaxRegression(Objective):
    """``f(W) = (1/N) Σ cross-entropy(X Wᵀ, y) + Σ_cj l2_j W_cj²/2``, over ``W.flatten()`` of W (C, D).

    With probabilities P and residuals R = P - Y: ``"exact"`` (and ``"ggn"``, the same) is
    ``(1/N) Σ (diag p_i - p_i p_iᵀ) ⊗ x_i x_iᵀ``, ``"fisher"`` is ``(1/N) Σ r_i r_iᵀ ⊗ x_i x_iᵀ``, and ``"majorizer"``
    drops ``p_i p_iᵀ``: C blocks of D × D, never below the Hessian (this library's, not the paper's).

    Args:
        X: (N, D), float32 or float64.
        y: (N,) classes, int64.
        n_classes: C; None is one more than the largest label.
        l2: penalty, a number or one per feature, (D,).

    Paper: Gradient-Normalized Smoothness for Optimization with Approximate Hessians, arXiv 2506.13710.
    """

    curvatures = ("exact", "ggn", "fisher", "majorizer")

    def __init__(self, X: Tensor, y: Tensor, n_classes: int | None = None, l2: float | Tensor = 0.0) -> None:
        self.X = check_matrix("X", X)
        if not isinstance(y, Tensor) or y.dtype != torch.int64:
            raise ArgumentTypeError(f"y must be an int64 tensor, got {getattr(y, 'dtype', type(y).__name__)}")
        if tuple(y.shape) != (X.shape[0],):
            raise ArgumentValueError(f"y must have shape ({X.shape[0]},), got {tuple(y.shape)}")
        self.n_classes = int(y.max()) + 1 if n_classes is None else n_classes
        if int(y.min()) < 0 or int(y.max()) >= self.n_classes:
            raise ArgumentValueError(f"y must hold classes from 0 to {self.n_classes - 1}, got {int(y.min())} to "
                                     f"{int(y.max())}")  # fmt: skip
        self.y = y
        self.features = X.shape[1]
        self.dim = self.n_classes * self.features
        self.l2 = _penalty(l2, self.features, self.X)
        self._penalised = bool((self.l2 > 0).any())

    def _logits(self, x: Tensor) -> Tensor:
        return self.X @ x.reshape(self.n_classes, self.features).mT

    def _residuals(self, P: Tensor) -> Tensor:
        return P - torch.nn.functional.one_hot(self.y, self.n_classes)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Objective.value_and_grad`."""
        log_p = torch.log_softmax(self._logits(x), 1)
        penalty = self.l2.repeat(self.n_classes) * x
        value = torch.nn.functional.nll_loss(log_p, self.y) + 0.5 * torch.dot(penalty, x)
        return value, (self._residuals(log_p.exp()).mT @ self.X / len(self.X)).reshape(-1) + penalty

    def _curvature(self, name: str, x: Tensor) -> Curvature:
        P = torch.softmax(self._logits(x), 1)
        diagonal = self.l2.repeat(self.n_classes) if self._penalised else None
        if name == "fisher":
            rows = (self._residuals(P)[:, :, None] * self.X[:, None, :]).reshape(len(P), -1)
            return LowRankCurvature(rows, P.new_full((len(P),), 1.0 / len(P)), diagonal)
        blocks = torch.stack([self.X.mT @ (p[:, None] * self.X) for p in P.mT / len(P)])
        if name == "majorizer":
            return BlockDiagCurvature(blocks + torch.diag(self.l2))
        return _SoftmaxCurvature(self.X, P, blocks, diagonal)


class _SoftmaxCurvature(Curvature):
    """``(1/N) Σ (diag p_i - p_i p_iᵀ) ⊗ x_i x_iᵀ + diag(δ)``; written out only when asked for."""

    def __init__(self, X: Tensor, P: Tensor, blocks: Tensor, diagonal: Tensor | None) -> None:
        super().__init__(P.shape[1] * X.shape[1])
        self.X, self.P, self.blocks, self.diagonal = X, P, blocks, diagonal

    def matvec(self, v: Tensor) -> Tensor:
        V = v.reshape(self.P.shape[1], self.X.shape[1])
        inner = self.X @ V.mT
        inner = self.P * (inner - (self.P * inner).sum(1, keepdim=True))
        made = (inner.mT @ self.X / len(self.X)).reshape(-1)
        return made if self.diagonal is None else made + self.diagonal * v

    def dense(self) -> Tensor:
        count, D = self.P.shape[1], self.X.shape[1]
        made = torch.block_diag(*self.blocks)
        rows = (self.P[:, :, None] * self.X[:, None, :]).reshape(len(self.X), -1)
        for c in range(count):  # upper blocks alone: half of the product of all rows
            part = slice(c * D, (c + 1) * D)
            made[part, c * D :].addmm_(rows[:, part].mT, rows[:, c * D :], alpha=-1.0 / len(self.X))
            made[(c + 1) * D :, part] = made[part, (c + 1) * D :].mT
        if self.diagonal is not None:
            made.diagonal().add_(self.diagonal)
        return made

    def is_finite(self) -> bool:
        return bool(self.P.isfinite().all())
