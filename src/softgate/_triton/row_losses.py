"""Launches the kernels of losses of dense logits, and their place in autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._triton import interpreting
from softgate._triton.row_slopes import slopes_kernel
from softgate._triton.row_sums import KEPT, rows_kernel
from softgate.losses._row_kernel import needs_graph

__all__: list[str] = []

#: Classes and warps of a tile of one row, of the sums and of the slopes; shorter rows share a tile of so many entries.
WIDE_SUMS, WIDE_SLOPES, ENTRIES = (4096, 8), (4096, 8), 2048
#: Most rows of a tile where rows lie beside each other in memory (classes in the middle, as of images).
ACROSS = 64
#: Names of a reduction for the kernels; a mean of nothing is NaN, or 0.
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2, "mean or 0": 3}

#: A tensor, its strides and its sizes as (outer, inner, classes).
Rows = tuple[Tensor, tuple[int, int, int], tuple[int, int, int]]


class Loss(NamedTuple):
    """What the kernels compute, see :mod:`softgate._triton.row_sums`.

    Attributes:
        kind: which loss.
        numbers: its three parameters.
        mode: which branch of it.
        ignore_index: target of rows that do not count.
        reduction: one of :data:`REDUCTIONS`.
        dtype: of the result.
        reference: the same from (input,) in plain torch, for derivatives of the gradient.
    """

    kind: int
    numbers: tuple[float, float, float]
    mode: int
    ignore_index: int
    reduction: str
    dtype: torch.dtype
    reference: Callable[[Tensor], Tensor]


def row_loss(input: Tensor, target: Tensor, weight: Tensor | None, loss: Loss) -> Tensor:
    """Reduced loss of logits and class indices by the kernels; gradient for ``input``."""
    result: Tensor = _RowLoss.apply(input, target, weight, loss)
    return result


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, weight: Tensor | None, loss: Loss) -> Tensor:
        flat, strides, sizes = _rows(x)
        target, rows = target.contiguous(), sizes[0] * sizes[1]
        kept = torch.empty((KEPT[loss.kind], rows), dtype=torch.float32, device=x.device)
        tile = _tile(sizes[1], sizes[2], strides[2] == 1, WIDE_SUMS)
        with torch.cuda.device_of(x):  # Triton launches on the current device; in backward autograd has set it
            rows_kernel[(_blocks(sizes, tile),)](
                flat, target, kept if weight is None else weight.contiguous(), kept, *strides, *sizes[1:], rows,
                loss.ignore_index, *loss.numbers, KIND=loss.kind, MODE=loss.mode, WEIGHTED=weight is not None, **tile,
            )  # fmt: skip
        if loss.reduction == "none":
            result, sums = kept[0].reshape(target.shape), kept
            result = result.clone() if loss.dtype is torch.float32 else result
        elif loss.reduction == "sum":
            result, sums = kept[0].sum(), kept
        else:
            sums = kept[:2].sum(1)
            total, weights = sums.unbind()
            result = total / weights
            if loss.reduction != "mean":
                result.masked_fill_(weights == 0.0, 0.0)
        ctx.save_for_backward(x, target, kept, sums)
        ctx.loss = loss
        return result if loss.dtype is torch.float32 else result.to(loss.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, target, kept, sums = ctx.saved_tensors
        loss: Loss = ctx.loss
        if needs_graph(x, grads[0]):
            return (*differentiable_gradients(loss.reference, (x,), (True,), grads[0]), None, None, None)
        flat, strides, sizes = _rows(x)
        out = torch.empty_like(x)
        flat_out, out_strides, _ = _rows(out)
        if flat_out.data_ptr() != out.data_ptr():  # axes that cannot be seen as one: it was a copy
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            flat_out, out_strides, _ = _rows(out)
        tile = _tile(sizes[1], sizes[2], strides[2] == 1, WIDE_SLOPES)
        slopes_kernel[(_blocks(sizes, tile), -(-sizes[2] // tile["BLOCK"]))](
            flat, target, grads[0].contiguous(), sums, kept, flat_out, *strides, *out_strides, *sizes[1:],
            kept.shape[1], loss.ignore_index, loss.numbers[0],
            KIND=loss.kind, MODE=loss.mode, REDUCTION=REDUCTIONS[loss.reduction], **tile,
        )  # fmt: skip
        return out, None, None, None


def _rows(x: Tensor) -> Rows:
    """``(C,)``, ``(N, C)`` or ``(N, C, ...)`` as rows; those of (N, C) are all inner."""
    if x.ndim <= 2:
        stride, step = x.stride() if x.ndim == 2 else (0, x.stride(0))
        return x, (0, stride, step), (1, x.shape[0] if x.ndim == 2 else 1, x.shape[-1])
    flat = x.flatten(2)
    outer, step, inner = flat.stride()
    return flat, (outer, inner, step), (flat.shape[0], flat.shape[2], flat.shape[1])


def _blocks(sizes: tuple[int, int, int], tile: dict[str, int]) -> int:
    """Programs along the rows."""
    return sizes[0] * -(-sizes[1] // tile["ROWS"])


@lru_cache(256)
def _tile(inner: int, classes: int, adjacent: bool, wide: tuple[int, int]) -> dict[str, int]:
    """Rows and classes of a program's tile, and its warps."""
    padded: int = triton.next_power_of_2(classes)
    if interpreting():
        return {"ROWS": 4, "BLOCK": 16, "num_warps": 1}
    if not adjacent:
        rows: int = min(ACROSS, triton.next_power_of_2(inner))
        # a grid has at most 65,535 programs along its second axis
        return {"ROWS": rows, "BLOCK": min(padded, max(ENTRIES // rows, padded >> 15)), "num_warps": 4}
    if padded >= wide[0]:
        return {"ROWS": 1, "BLOCK": wide[0], "num_warps": wide[1]}
    return {"ROWS": max(1, ENTRIES // padded), "BLOCK": padded, "num_warps": 4 if padded <= 1024 else wide[1]}
