"""Values, gradients and curvatures of a function of parameters, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, check_choice
from softgate.optim._curvature import Curvature, DenseCurvature, LowRankCurvature
from softgate.optim._curvature_operators import MatVecCurvature

__all__: list[str] = []

CURVATURES = ("exact", "ggn", "fisher", "none")
#: Up to this many parameters the Hessian is written out.
DENSE_UP_TO = 1000


class AutogradProblem:
    """A closure over parameters, seen as a function of one vector x (d,) of all of them.

    Args:
        closure: returns the loss, a scalar; for ``"ggn"`` the pair (loss, logits), for ``"fisher"`` the losses of the
            samples (N,), whose mean is minimised. It must not call ``backward``.
        params: leaves of one dtype and device.
        kind: which of these the closure returns; a curvature's name.
        name: what the closure is called in errors.
    """

    def __init__(self, closure: Callable[[], Any], params: Sequence[Tensor], kind: str, name: str) -> None:
        self.closure, self.params, self.kind, self.name = closure, list(params), kind, name
        self.dim = sum(p.numel() for p in self.params)
        self.moves = 0

    def vector(self) -> Tensor:
        """All parameters, (d,), a copy."""
        return torch.cat([p.detach().reshape(-1) for p in self.params])

    def assign(self, x: Tensor) -> None:
        """Give the parameters the values x."""
        self.moves += 1
        with torch.no_grad():
            for p, part in zip(self.params, x.split([p.numel() for p in self.params]), strict=True):
                p.copy_(part.reshape(p.shape))

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and what the curvature is made of."""
        self.assign(x)
        made = self.closure()
        parts = made if isinstance(made, tuple) else (made,)
        wanted = 2 if self.kind == "ggn" else 1
        if len(parts) != wanted or not all(isinstance(part, Tensor) for part in parts):
            what = "a pair (loss, logits)" if self.kind == "ggn" else "a tensor"
            raise ArgumentTypeError(f"{self.name} must return {what} for curvature {self.kind!r}, got "
                                    f"{', '.join(type(part).__name__ for part in parts)}")  # fmt: skip
        loss = parts[0]
        if self.kind == "fisher":
            if loss.ndim != 1 or loss.numel() == 0:
                raise ArgumentValueError(f"{self.name} must return the losses of the samples, (N,), for curvature "
                                         f"'fisher', got shape {tuple(loss.shape)}")  # fmt: skip
            return loss.mean(), loss
        if loss.numel() != 1:
            raise ArgumentValueError(f"{self.name} must return a scalar, got shape {tuple(loss.shape)}")
        return loss.reshape(()), parts[-1]

    def _grad(self, of: Tensor, weights: Tensor | None = None, **options: Any) -> Tensor:
        """Gradient in all parameters as one vector, or as rows where ``weights`` are batched."""
        batch = weights.shape[:1] if options.get("is_grads_batched") and weights is not None else ()
        if not of.requires_grad:
            return self.params[0].new_zeros(*batch, self.dim)
        found = torch.autograd.grad(of, self.params, weights, allow_unused=True, **options)
        parts = [
            (p.new_zeros(*batch, p.numel()) if g is None else g.reshape(*batch, p.numel()))
            for g, p in zip(found, self.params, strict=True)
        ]
        return torch.cat(parts, -1)

    @torch.enable_grad()
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient (d,) at x."""
        loss, _ = self._evaluate(x)
        if not loss.requires_grad:
            raise ArgumentValueError(f"{self.name} must depend on what is minimised through differentiable operations")
        try:
            return loss.detach(), self._grad(loss).detach()
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise StateError(
                f"{self.name} must not call backward: the gradient is taken from what it returns"
            ) from error

    @torch.enable_grad()
    def curvature(self, name: str, x: Tensor, *, dense: bool) -> Curvature:
        """The curvature ``name`` at x; ``dense`` lets it be written out where it is small."""
        check_choice("curvature", name, CURVATURES)
        if name == "fisher":
            _, losses = self._evaluate(x)
            rows = self._grad(losses, _eye(len(losses), losses), is_grads_batched=True).detach()
            return LowRankCurvature(rows, losses.new_full((len(losses),), 1.0 / len(losses)).detach())
        if name == "exact" and dense and self.dim <= DENSE_UP_TO:
            gradient = self._grad(self._evaluate(x)[0], create_graph=True)
            H = self._grad(gradient, _eye(self.dim, x), retain_graph=True, is_grads_batched=True).detach()
            return DenseCurvature(0.5 * (H + H.mT))
        return MatVecCurvature(_Products(self, name, x), self.dim, dtype=x.dtype, device=x.device)

    @torch.enable_grad()
    def product(self, name: str, x: Tensor) -> Callable[[Tensor], Tensor]:
        """``v -> H v`` at x, by the graph of one evaluation; good until the parameters move."""
        loss, part = self._evaluate(x)
        if name == "ggn":
            return self._gauss_newton(loss, part)
        gradient = self._grad(loss, create_graph=True)
        return lambda v: self._grad(gradient, v, retain_graph=True)

    def _gauss_newton(self, loss: Tensor, logits: Tensor) -> Callable[[Tensor], Tensor]:
        """``v -> Jᵀ (∇² of the loss in the logits) J v``; ``J v`` is the derivative of ``Jᵀ w`` in w."""
        (outer,) = torch.autograd.grad(loss, logits, create_graph=True)
        weights = torch.zeros_like(logits, requires_grad=True)
        pulled = self._grad(logits, weights, create_graph=True)

        def product(v: Tensor) -> Tensor:
            (moved,) = torch.autograd.grad(pulled, weights, v, retain_graph=True)
            (bent,) = torch.autograd.grad(outer, logits, moved, retain_graph=True)
            return self._grad(logits, bent, retain_graph=True)

        return product


class _Products:
    """Products with the curvature at x; the graph is made again after the parameters were somewhere else."""

    def __init__(self, problem: AutogradProblem, name: str, x: Tensor) -> None:
        self.problem, self.name, self.x = problem, name, x
        self.moves = -1
        self.product: Callable[[Tensor], Tensor]

    def __call__(self, v: Tensor) -> Tensor:
        if self.moves != self.problem.moves:
            self.product = self.problem.product(self.name, self.x)
            self.moves = self.problem.moves
        return self.product(v)


def _eye(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)
