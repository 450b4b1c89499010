"""Cross-entropy of class indices in blocks of rows, which on a CPU stay in the cache.

One :class:`torch.autograd.Function` serves every loss of the form ``log(1 + rest / target score)``: a
:class:`RowMath` says how scores and gradients of one block are computed with in-place operations on scratch buffers.
Only the logits and a few numbers per row are kept for the backward pass, where ``F.cross_entropy`` keeps the
log-probabilities and a zero-filled gradient of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate.dispatch import is_batched_gradient, transform_reason
from softgate.losses._targets import has_class_indices, reduce_rows, split_ignored

__all__: list[str] = []

#: Entries per block: two float32 scratch buffers of a megabyte each stay in the L3 cache, and the calls into torch cost
#: little beside them (2**15 to 2**18 measured on an EPYC with 32 MB: the larger, the faster).
BLOCK = 2**18
#: On a GPU a block is bounded by memory alone: the scratch of one takes 128 MiB a buffer.
GPU_BLOCK = 2**25


class RowMath(Protocol):
    """The mathematics of one loss; blocks are ``(n, C)`` or ``(n, C, m)``, rows ``(n, 1)`` or ``(n, 1, m)``."""

    def rest(self, x: Tensor, index: Tensor, scratch: tuple[Tensor, Tensor], pivot: Tensor, rest: Tensor) -> None:
        """Write the summed scores of all classes but the target into ``rest``, and a reference point into ``pivot``."""

    def finish(self, x_target: Tensor, pivot: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and total score of every row; inf or NaN in either sends the row to :meth:`rows`."""

    def slopes(self, x: Tensor, out: Tensor, pivot: Tensor, scale: Tensor) -> None:
        """Write the gradient of all classes but the target, ``scale`` being the row's gradient over its total."""

    def slope_at_target(self, x_target: Tensor, pivot: Tensor, rest: Tensor, total: Tensor, grad: Tensor) -> Tensor:
        """Gradient of the target logit."""

    def rows(self, x: Tensor, index: Tensor) -> Tensor:
        """Row losses ``(n,)`` of ``x`` ``(n, C)`` from ordinary differentiable operations, for all inputs."""


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, math: RowMath) -> Tensor:
        dtype = compute_dtype(x.dtype)
        pivot, rest = (x.new_empty(index.shape, dtype=dtype) for _ in range(2))
        scratch = [scratch_for(x) for _ in range(3 if x.dtype != dtype else 2)]
        for part in _blocks(x):
            block = x[part]
            pair = _view(scratch[0], block), _view(scratch[1], block)
            wide = block if x.dtype == dtype else _view(scratch[2], block).copy_(block)
            math.rest(wide, index[part], pair, pivot[part], rest[part])
        loss, total = math.finish(x.gather(1, index).to(dtype), pivot, rest)
        # Rows that overflow in linear scale, or hold NaN or infinities, are done in logarithmic scale.
        bad = x.new_empty(0, dtype=torch.bool)
        if not isfinite(float(loss.sum() + total.sum())):
            bad = ~(torch.isfinite(loss) & torch.isfinite(total)).squeeze(1)
            loss.squeeze(1)[bad] = math.rows(rows_of(x, bad).to(dtype), index.squeeze(1)[bad])
        ctx.save_for_backward(x, index, bad, pivot, rest, total)
        ctx.math = math
        return loss.squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, index, bad, pivot, rest, total = ctx.saved_tensors
        if needs_graph(x, grads[0]):
            return _differentiable(x, index, grads[0], ctx.math), None, None
        grad = grads[0].unsqueeze(1)
        scale = grad / total
        out = torch.empty_like(x)
        scratch = [scratch_for(x) for _ in range(2 if x.dtype != grad.dtype else 0)]
        for part in _blocks(x):
            if not scratch:
                ctx.math.slopes(x[part], out[part], pivot[part], scale[part])
                continue
            wide, slopes = (_view(buffer, x[part]) for buffer in scratch)
            ctx.math.slopes(wide.copy_(x[part]), slopes, pivot[part], scale[part])
            out[part].copy_(slopes)
        x_target = x.gather(1, index).to(grad.dtype)
        out.scatter_(1, index, ctx.math.slope_at_target(x_target, pivot, rest, total, grad).to(out.dtype))
        if bad.numel():
            exact = _differentiable(rows_of(x, bad), index.squeeze(1)[bad].unsqueeze(1), grads[0][bad], ctx.math)
            # an ignored row gets no gradient, whatever it holds
            exact = exact.masked_fill((grads[0][bad] == 0).unsqueeze(1), 0.0)
            (out if x.ndim == 2 else out.movedim(1, -1))[bad] = exact
        return out, None, None


def scratch_for(x: Tensor) -> Tensor:
    """Memory for one block of ``x`` in the dtype of computation."""
    return x.new_empty(_block_size(x), dtype=compute_dtype(x.dtype))


def needs_graph(x: Tensor, grad: Tensor) -> bool:
    """Whether a gradient has to be differentiable, or is one of many."""
    return torch.is_grad_enabled() or transform_reason(x, grad) is not None or is_batched_gradient(grad)


def rows_of(x: Tensor, mask: Tensor) -> Tensor:
    """The rows (k, C) where the mask is True."""
    return (x if x.ndim == 2 else x.movedim(1, -1))[mask]


def _differentiable(x: Tensor, index: Tensor, grad: Tensor, math: RowMath) -> Tensor:
    """The same gradient from ordinary operations: for double backward, batched gradients and difficult rows."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if x.requires_grad else x.detach().requires_grad_()
        wide = leaf.to(grad.dtype)
        if x.ndim == 2:
            rows = math.rows(wide, index.squeeze(1))
        else:
            flat = wide.movedim(1, -1).reshape(-1, x.shape[1])
            rows = math.rows(flat, index.reshape(-1)).reshape(index.squeeze(1).shape)
        (result,) = torch.autograd.grad(rows, leaf, grad, create_graph=create)
    return result


def _entries(x: Tensor) -> int:
    """Entries of a block."""
    return BLOCK if x.is_cpu else GPU_BLOCK


def _block_size(x: Tensor) -> int:
    return min(x.numel(), max(_entries(x), x.shape[1]))


def _view(buffer: Tensor, like: Tensor) -> Tensor:
    return buffer[: like.numel()].view(like.shape)


def _blocks(x: Tensor) -> Iterator[tuple[slice, ...]]:
    """Slices over the rows, and over the positions of one image if that alone exceeds a block."""
    most, inner = _entries(x), x.shape[1] * (x.shape[2] if x.ndim == 3 else 1)
    step = max(1, most // inner)
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        if inner <= most or x.ndim == 2:
            yield (rows,)
            continue
        width = max(1, most // x.shape[1])
        for left in range(0, x.shape[2], width):
            yield rows, slice(None), slice(left, left + width)


def device_refuses(x: Tensor) -> str | None:
    """Why the blocks cannot be worked on where ``x`` is, None if they can."""
    if x.is_cpu:
        return None
    if not x.is_cuda:
        return f"it is written for the CPU and for GPUs, input is on {x.device}"
    if torch.cuda.is_current_stream_capturing():
        return "it asks the GPU which rows are difficult, and a CUDA graph that is being captured has no answer"
    return None


def row_kernel(math: RowMath, outer: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """The loss with the signature of ``F.cross_entropy`` that runs ``math`` block by block.

    Args:
        math: what a row costs.
        outer: ``(row losses, **options) -> row losses``, an ordinary differentiable function applied to every row; its
            options are the keyword arguments of the loss that ``F.cross_entropy`` does not have.
    """

    def run(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        **options: Any,
    ) -> Tensor:
        keep = None
        index = target.long()
        if bool((target == ignore_index).any()):
            index, keep = split_ignored(target, ignore_index)
        x = input.unsqueeze(0) if input.ndim == 1 else input.flatten(2) if input.ndim > 3 else input
        loss = _RowLoss.apply(x, index.reshape(x.shape[:1] + x.shape[2:]).unsqueeze(1), math)
        if outer is not None:
            loss = outer(loss, **options)
        row_weight = None if weight is None else weight.to(loss.dtype)[index]
        return reduce_rows(loss.reshape(target.shape), keep, row_weight, reduction).to(input.dtype)

    return run


def row_kernel_refuses(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    **options: Any,
) -> str | None:
    """Why the row kernel cannot run this call, None if it can."""
    return device_refuses(input) or kind_refuses(input, target, weight, label_smoothing)


def kind_refuses(input: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float) -> str | None:
    """Why no kernel of rows can run a call of this kind, wherever its tensors are; None if one may."""
    if not has_class_indices(target):
        return "it needs class indices, target holds probabilities"
    if label_smoothing:
        return "it has no label smoothing"
    if weight is not None and weight.requires_grad:
        return "it has no gradient for weight"
    if input.numel() == 0:
        return "the input is empty"
    return None
