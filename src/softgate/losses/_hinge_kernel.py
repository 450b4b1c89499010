"""Rows of the one-vs-rest and Crammer-Singer hinge in blocks of rows, which on a CPU stay in the cache.

Only the scores are kept for the backward pass, where the plain-torch form keeps several tensors of their size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate._math.double_backward import differentiable_gradients
from softgate.losses._row_kernel import _block_size, _blocks, _view, device_refuses, needs_graph, scratch_for
from softgate.losses._targets import has_class_indices

__all__: list[str] = []

#: ``(x, place, margin, hinge, axis=1) -> rows``: the same in ordinary differentiable operations; keeps the axis.
PlainRows = Callable[..., Tensor]


class OneVsRestRows(torch.autograd.Function):
    """``sum_k max(0, margin - y_k f_k)``, or of the squares; ``x`` (N, C) or (N, C, m), ``index`` (N, 1[, m])."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, margin: float, hinge: str, plain: PlainRows) -> Tensor:
        """Row losses; see :data:`PlainRows` for the arguments."""
        scratch = scratch_for(x)
        rows = scratch.new_empty(index.shape)
        for part in _blocks(x):
            block, place = x[part], index[part]
            v = _view(scratch, block).copy_(block)
            own = margin - v.gather(1, place)
            v.add_(margin).scatter_(1, place, own).clamp_(min=0.0)
            torch.sum(v.square_() if hinge == "squared" else v, 1, keepdim=True, out=rows[part])
        ctx.save_for_backward(x, index)
        ctx.options = margin, hinge, plain
        return rows.squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the scores."""
        x, index = ctx.saved_tensors
        margin, hinge, plain = ctx.options
        if needs_graph(x, grads[0]):
            return _by_graph(x, index, grads[0], margin, hinge, plain)
        grad = grads[0].unsqueeze(1) * (2.0 if hinge == "squared" else 1.0)
        out = torch.empty_like(x)
        scratch = scratch_for(x) if x.dtype != grad.dtype else None
        for part in _blocks(x):
            block, place, scale = x[part], index[part], grad[part]
            v = (out[part] if scratch is None else _view(scratch, block)).copy_(block)
            own = margin - v.gather(1, place)
            v.add_(margin)
            v = v.clamp_(min=0.0) if hinge == "squared" else v.ge_(0.0)
            own = own.clamp_(min=0.0) if hinge == "squared" else own.ge_(0.0)
            v.mul_(scale).scatter_(1, place, -own * scale)
            if scratch is not None:
                out[part].copy_(v)
        return out, None, None, None, None


class CrammerSingerRows(torch.autograd.Function):
    """``max(0, margin + max_{k != y} f_k - f_y)``, or its square; the gradient has two entries a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, margin: float, hinge: str, plain: PlainRows) -> Tensor:
        """Row losses; see :data:`PlainRows` for the arguments."""
        scratch = x.new_empty(_block_size(x))
        rival, where = x.new_empty(index.shape), torch.empty_like(index)
        for part in _blocks(x):
            v = _view(scratch, x[part]).copy_(x[part]).scatter_(1, index[part], float("-inf"))
            torch.max(v, 1, keepdim=True, out=(rival[part], where[part]))
        wide = compute_dtype(x.dtype)
        violation = margin + (rival.to(wide) - x.gather(1, index).to(wide))
        positive = violation.clamp(min=0.0)
        ctx.save_for_backward(x, index, where, violation)
        ctx.options = margin, hinge, plain
        return (positive.square() if hinge == "squared" else positive).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the scores."""
        x, index, where, violation = ctx.saved_tensors
        margin, hinge, plain = ctx.options
        if needs_graph(x, grads[0]):
            return _by_graph(x, index, grads[0], margin, hinge, plain)
        slope = 2.0 * violation.clamp(min=0.0) if hinge == "squared" else (violation >= 0.0).to(violation.dtype)
        push = (slope * grads[0].unsqueeze(1)).to(x.dtype)
        out = torch.zeros_like(x)
        return out.scatter_(1, where, push).scatter_(1, index, -push), None, None, None, None


KernelRows = type[OneVsRestRows | CrammerSingerRows]


def _by_graph(
    x: Tensor, index: Tensor, grad: Tensor, margin: float, hinge: str, plain: PlainRows
) -> tuple[Tensor | None, ...]:
    def rows(scores: Tensor) -> Tensor:
        return plain(scores.to(grad.dtype), index, margin, hinge).squeeze(1)

    return *differentiable_gradients(rows, (x,), (True,), grad), None, None, None, None


def kernel_rows(function: type[torch.autograd.Function], x: Tensor, index: Tensor, *options: Any) -> Tensor:
    """Rows in the shape of ``index`` for scores of any number of dimensions."""
    flat = x.unsqueeze(0) if x.ndim == 1 else x.flatten(2) if x.ndim > 3 else x
    place = index.reshape(flat.shape[:1] + flat.shape[2:]).unsqueeze(1)
    rows: Tensor = function.apply(flat, place, *options)
    return rows.reshape(index.shape)


def hinge_kernel_refuses(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> str | None:
    """Why the kernel cannot run this call, None if it can."""
    reason = device_refuses(input)
    if reason is not None:
        return reason
    if not has_class_indices(target):
        return "it needs class indices, target holds a label for every class"
    if input.numel() == 0:
        return "the input is empty"
    return None
