"""Two-level hierarchical softmax, the classical way to train many classes, as a baseline."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.losses._self_updating import SelfUpdating, check_finite, check_rows
from softgate.losses._spherical import check_class_count

__all__ = ["HierarchicalSoftmax"]


class HierarchicalSoftmax(SelfUpdating):
    """Class-based two-level softmax trained by exact SGD: a baseline for heads of very many classes.

    Classes are cut, in the order of their indices, into groups of equal size; the probability of a class is that of its
    group times that of the class within the group. A step touches the weights of the groups that occur in the batch
    only, so these are buffers that the backward pass updates in place, as :class:`FactoredSphericalLinear` does; there
    is nothing for an optimizer. Rows of the same group share one matrix product.

    Args:
        in_features: width of the rows.
        num_classes: number of classes, at least 2.
        lr: learning rate; each backward pass is one SGD step.
        num_groups: number of groups, ``ceil(sqrt(num_classes))`` by default, at most ``num_classes``.
        ignore_index: rows with this target are left out.
        device: of the weights.
        dtype: of the weights, float32 or float64.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is out of range.

    Example:
        >>> head = HierarchicalSoftmax(8, 1000, lr=0.1)
        >>> h = torch.randn(4, 8, requires_grad=True)
        >>> losses = head(h, torch.tensor([3, 999, 0, 3]))
        >>> losses.mean().backward()
        >>> torch.allclose(head.log_prob(h).exp().sum(-1), torch.ones(4))
        True

    Paper: baseline of de Brébisson, Vincent, The Z-loss, arXiv 1604.08859.
    """

    group_weight: Tensor
    class_weight: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        lr: float,
        num_groups: int | None = None,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(lr, 0.0)
        check_class_count("in_features", in_features, 1)
        check_class_count("num_classes", num_classes, 2)
        groups = ceil(sqrt(num_classes)) if num_groups is None else num_groups
        check_class_count("num_groups", groups, 1)
        if groups > num_classes:
            raise ArgumentValueError(f"num_groups must be at most num_classes={num_classes}, got {groups}")
        if dtype not in (torch.float32, torch.float64):
            raise ArgumentTypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.in_features, self.num_classes, self.ignore_index = in_features, num_classes, ignore_index
        self.group_size = ceil(num_classes / groups)
        self.num_groups = ceil(num_classes / self.group_size)  # the last groups of a coarse division may be empty
        bound = in_features**-0.5
        for name, count in (("group_weight", self.num_groups), ("class_weight", num_classes)):
            weight = torch.empty(count, in_features, device=device, dtype=dtype).uniform_(-bound, bound)
            self.register_buffer(name, weight)
        self.changed()

    def forward(self, h: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of every row, in nats; its backward pass updates the weights.

        Args:
            h: hidden rows ``(..., in_features)``, finite, real floating point.
            target: int64 class indices of the leading shape of ``h``, or ``ignore_index``, which gives a loss of 0.

        Returns:
            Losses of the shape of ``target``, in the dtype of the weights.

        Raises:
            ArgumentTypeError: a tensor has the wrong dtype or layout.
            ArgumentValueError: a shape or an index is not allowed, or ``h`` is not finite.
            StateError: the weights belong to an optimizer or were changed from outside.
        """
        check_rows(h, target, self.in_features, self.num_classes, self.ignore_index)
        self.check_state()
        rows = h.to(self.group_weight.dtype).reshape(-1, self.in_features)
        losses: Tensor = _Step.apply(rows, target.reshape(-1), self.anchor(h), self)
        return losses.reshape(target.shape)

    @torch.no_grad()
    def log_prob(self, h: Tensor) -> Tensor:
        """Log-probabilities ``(..., num_classes)`` of all classes, in nats."""
        check_float_tensor("h", h)
        rows = h.to(self.group_weight.dtype).reshape(-1, self.in_features)
        of_group = torch.log_softmax(rows @ self.group_weight.T, 1)
        parts = [
            of_group[:, group, None] + torch.log_softmax(rows @ weight.T, 1)
            for group, weight in enumerate(self.class_weight.split(self.group_size))
        ]
        return torch.cat(parts, 1).reshape(*h.shape[:-1], self.num_classes)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, lr={self.lr}, "
            f"num_groups={self.num_groups}, group_size={self.group_size}"
        )


class _Step(torch.autograd.Function):
    """Losses of all rows; the backward pass returns the gradient by ``h`` and updates the weights it touched."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, target: Tensor, anchor: Tensor | None, layer: HierarchicalSoftmax) -> Tensor:
        kept = torch.nonzero(target != layer.ignore_index).squeeze(1)
        group = target.index_select(0, kept) // layer.group_size
        order = group.argsort(stable=True)
        kept, group = kept.index_select(0, order), group.index_select(0, order)
        rows, within = h.index_select(0, kept), target.index_select(0, kept) - group * layer.group_size
        found, counts = group.unique_consecutive(return_counts=True)
        coarse = torch.log_softmax(rows @ layer.group_weight.T, 1)
        losses = -coarse.gather(1, group.unsqueeze(1)).squeeze(1)
        sizes, weights = counts.tolist(), layer.class_weight.split(layer.group_size)
        fine = [
            torch.log_softmax(part @ weights[which].T, 1)
            for which, part in zip(found.tolist(), rows.split(sizes), strict=True)
        ]
        for loss, logs, place in zip(losses.split(sizes), fine, within.split(sizes), strict=True):
            loss -= logs.gather(1, place.unsqueeze(1)).squeeze(1)
        ctx.save_for_backward(h)
        ctx.saved = kept, rows, group, within, found.tolist(), sizes, coarse, fine
        ctx.layer, ctx.changes, ctx.updates = layer, layer.changes, anchor is not None
        return h.new_zeros(len(h)).index_copy_(0, kept, losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        layer: HierarchicalSoftmax = ctx.layer
        (h,) = ctx.saved_tensors
        layer.check_backward(ctx.changes)
        layer.check_state()
        kept, rows, group, within, found, sizes, coarse, fine = ctx.saved
        g = grads[0].index_select(0, kept)
        check_finite("the gradient of the losses", g)
        by_group = _slope(coarse, group, g)
        d_rows = by_group @ layer.group_weight
        weights = layer.class_weight.split(layer.group_size)
        parts = zip(
            found, fine, rows.split(sizes), within.split(sizes), g.split(sizes), d_rows.split(sizes), strict=True
        )
        for which, logs, part, place, slope, d_part in parts:
            by_class = _slope(logs, place, slope)
            d_part.addmm_(by_class, weights[which])
            if ctx.updates:
                weights[which].addmm_(by_class.T, part, alpha=-layer.lr)
        if ctx.updates and len(kept):
            layer.group_weight.addmm_(by_group.T, rows, alpha=-layer.lr)
            layer.steps += 1
            layer.changed()
        return torch.zeros_like(h).index_copy_(0, kept, d_rows), None, None, None


def _slope(log_prob: Tensor, index: Tensor, g: Tensor) -> Tensor:
    """Gradient by the logits: probabilities minus one at the target, times the row's ``g``."""
    slope = log_prob.exp()
    slope.scatter_add_(1, index.unsqueeze(1), slope.new_full((len(index), 1), -1.0))
    return slope.mul_(g.unsqueeze(1))
