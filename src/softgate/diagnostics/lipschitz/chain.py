r"""Layer-wise multipliers, S = P = 0, without a solver for semidefinite programs.

The matrix inequality of a feed-forward network then falls into one per layer, and its least bound is

    min over u of  Π_i | exp(u_i/2) W_i exp(-u_{i-1}/2) |₂

with one multiplier exp(u) per group, and 1 at both ends. The logarithm of each factor is convex in u, so any method of
descent finds the least one, and every u proves its product. In the maximum norm u_0 is free as well and the factor
√Σ exp(u_0) joins. The largest singular value is smoothed by a Schatten norm of growing order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__: list[str] = []

#: Orders p of the Schatten norm, and the most steps with each.
_ORDERS = (4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0)
_STEPS = 60


@dataclass(frozen=True)
class Chain:
    """See the module.

    Attributes:
        factors: W_1, …, W_l in the bases of the groups.
        groups: for each layer but the last, the group of every output.
        absolute: the inputs are measured by their largest entry.
    """

    factors: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    absolute: bool = False

    @property
    def is_zero(self) -> bool:
        """Whether some layer maps everything to 0."""
        return any(not bool(factor.any()) for factor in self.factors)

    def sizes(self) -> list[int]:
        """Number of multipliers of the input (0 for the Euclidean norm) and of each layer."""
        return [self.factors[0].shape[1] if self.absolute else 0, *(int(group.max()) + 1 for group in self.groups)]

    def bound(self, logs: Tensor) -> float:
        """The product that the multipliers exp(``logs``) prove."""
        if self.is_zero:
            return 0.0
        first, scales = self._scales(logs)
        total = 0.5 * float(first.logsumexp(0)) if self.absolute else 0.0
        for factor, after, before in zip(self.factors, scales[1:], scales, strict=False):
            scaled = (0.5 * after).exp()[:, None] * factor * (-0.5 * before).exp()
            total += math.log(float(torch.linalg.matrix_norm(scaled, 2)))
        return math.exp(total) if total < 709.0 else math.inf

    def _scales(self, logs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The input's own logarithms, and those of every entry from the input to the output."""
        first, *parts = logs.split(self.sizes())
        entry = first if self.absolute else logs.new_zeros(self.factors[0].shape[1])
        inner = [part[group] for part, group in zip(parts, self.groups, strict=True)]
        return first, [entry, *inner, logs.new_zeros(len(self.factors[-1]))]

    def smooth(self, logs: Tensor, order: float) -> tuple[float, Tensor]:
        """Logarithm of the product of Schatten norms of order 2p, and its gradient."""
        first, scales = self._scales(logs)
        gradients = [torch.zeros_like(scale) for scale in scales]
        total = 0.0
        for i, factor in enumerate(self.factors):
            scaled = (0.5 * scales[i + 1]).exp()[:, None] * factor * (-0.5 * scales[i]).exp()
            value, left, right = schatten(scaled, order)
            total += value
            gradients[i + 1] += 0.5 * left
            gradients[i] -= 0.5 * right
        parts = [torch.zeros_like(first)]
        if self.absolute:
            total += 0.5 * float(first.logsumexp(0))
            parts = [gradients[0] + 0.5 * first.softmax(0)]
        for gradient, group, size in zip(gradients[1:-1], self.groups, self.sizes()[1:], strict=True):
            parts.append(gradient.new_zeros(size).index_add_(0, group, gradient))
        return total, torch.cat(parts)


def schatten(matrix: Tensor, order: float) -> tuple[float, Tensor, Tensor]:
    """Logarithm of the norm, and the shares of rows and columns in it, which sum to 1 each."""
    flat = matrix.shape[0] <= matrix.shape[1]
    thin = matrix if flat else matrix.mT
    values, vectors = torch.linalg.eigh(thin @ thin.mT)
    logs = values.clamp_min(1e-300).log()
    weights = (order * logs).softmax(0)
    near = vectors.square() @ weights
    far = (thin.mT @ vectors).square() @ (weights * (-logs).exp()).nan_to_num(posinf=0.0)
    value = 0.5 * float((order * logs).logsumexp(0)) / order
    return (value, near, far) if flat else (value, far, near)


def minimise(chain: Chain, tol: float) -> tuple[Tensor, bool]:
    """Multipliers with a small product, and whether the last order of the norm improved it by less than ``tol``."""
    sizes = chain.sizes()
    logs = torch.zeros(sum(sizes), dtype=torch.float64)
    if chain.absolute:
        logs[: sizes[0]] = chain.factors[0].square().sum(0).log() / 2
    if chain.is_zero or not len(logs):
        return logs, True
    best, value, converged = logs.clone(), chain.bound(logs), False
    for order in _ORDERS:
        logs = _descend(chain, logs, order)
        found = chain.bound(logs)
        gain = 1.0 - found / value
        if found < value:
            best, value = logs.clone(), found
        # the smoothed norm is at most rank^(1/2p) above the largest singular value, in every factor
        converged = gain < tol and sum(math.log(min(f.shape)) for f in chain.factors) / (2 * order) < 10 * tol
        if converged:
            break
    return best, converged


def _descend(chain: Chain, logs: Tensor, order: float) -> Tensor:
    logs = logs.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logs], max_iter=_STEPS, tolerance_grad=1e-8, tolerance_change=1e-11, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        value, gradient = chain.smooth(logs.detach(), order)
        logs.grad = gradient
        return torch.tensor(value, dtype=torch.float64)

    optimizer.step(closure)  # type: ignore[arg-type]
    return logs.detach()
