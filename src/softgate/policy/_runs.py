"""Groups of unequal size as runs of neighbouring rows: reductions and softmax over each run, without padding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient, transform_reason

__all__: list[str] = []


class Runs(NamedTuple):
    """Where the groups are among the rows.

    Attributes:
        order: (B,) int64, rows sorted by group, those of a group in their own order; None if they are already.
        slot: (B,) int64, number of the group of every sorted row, from 0.
        sizes: (P,) int64, rows of every group, in the order of the ids.
    """

    order: Tensor | None
    slot: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, group_id: Tensor) -> Runs:
        """The runs of at least one row; looks at the ids."""
        ids, slot, sizes = torch.unique_consecutive(group_id, return_inverse=True, return_counts=True)
        if bool((ids[1:] > ids[:-1]).all()):
            return cls(None, slot, sizes)
        ordered, order = torch.sort(group_id, stable=True)
        return cls(order, *torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)[1:])

    def rows(self, values: Tensor) -> Tensor:
        """Values (B,) in the order of the groups."""
        return values if self.order is None else values.index_select(0, self.order)

    def spread(self, values: Tensor) -> Tensor:
        """(P,) -> (B,), the value of its group at every sorted row."""
        return values.index_select(0, self.slot)

    def sum(self, values: Tensor) -> Tensor:
        """(B,) sorted -> (P,); no gradient."""
        return torch.segment_reduce(values, "sum", lengths=self.sizes, unsafe=True)

    def max(self, values: Tensor) -> Tensor:
        """(B,) sorted -> (P,); no gradient."""
        return torch.segment_reduce(values, "max", lengths=self.sizes, unsafe=True)

    def log_softmax(self, values: Tensor) -> Tensor:
        """Over each run, (B,) sorted -> (B,); no gradient."""
        shifted = values - self.spread(self.max(values))
        return shifted.sub_(self.spread(self.sum(shifted.exp()).log_()))


def cross_entropy(u: Tensor, q: Tensor, runs: Runs) -> Tensor:
    """``-sum_i q_i log softmax(u)_i`` over each run, (P,); q has no gradient."""
    found: Tensor = _CrossEntropy.apply(u, q, runs)
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, q: Tensor, runs: Runs) -> Tensor:
        log_p = runs.log_softmax(u)
        losses = runs.sum(_products(q, log_p)).neg_()
        ctx.save_for_backward(u, q, log_p)
        ctx.runs = runs
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, q, log_p = ctx.saved_tensors
        (grad,), runs = grads, ctx.runs
        if torch.is_grad_enabled() or transform_reason(u, grad) is not None or is_batched_gradient(grad):
            return *differentiable_gradients(lambda u: _plain(u, q, runs), [u], [True], grad), None, None
        return log_p.exp().sub_(q).mul_(runs.spread(grad)), None, None


def _products(q: Tensor, log_p: Tensor) -> Tensor:
    """What a candidate with q = 0 holds does not matter."""
    return torch.where(q > 0, q * log_p, 0.0)


def _plain(u: Tensor, q: Tensor, runs: Runs) -> Tensor:
    """The same from operations that have derivatives."""
    shifted = u - runs.spread(runs.max(u.detach()))
    nothing = u.new_zeros(runs.sizes.shape)
    log_p = shifted - runs.spread(nothing.index_add(0, runs.slot, shifted.exp()).log())
    return -nothing.index_add(0, runs.slot, _products(q, log_p))
