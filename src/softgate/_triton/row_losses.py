"""Launches the kernels of losses of dense logits, and their place in autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._triton import interpreting
from softgate._triton.row_slopes import slopes_kernel
from softgate._triton.row_sums import KEPT, rows_kernel
from softgate.dispatch import is_batched_gradient, transform_reason

__all__: list[str] = []

#: Classes of a tile, its warps, and entries of a tile where rows are shorter than that.
WIDE, WARPS, ENTRIES = 4096, 8, 2048
#: Rows and classes of a tile whose rows lie beside each other in memory (classes in the middle, as of images).
ACROSS = 64, 32


@dataclass(frozen=True)
class Loss:
    """What the kernels compute, see :mod:`softgate._triton.row_sums`.

    Attributes:
        kind: which loss.
        numbers: its three parameters.
        mode: which branch of it.
        ignore_index: target of rows that do not count.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        empty: mean over no rows.
        dtype: of the result.
        reference: the same from (input,) in plain torch, for derivatives of the gradient.
    """

    kind: int
    numbers: tuple[float, float, float]
    mode: int
    ignore_index: int
    reduction: str
    empty: float
    dtype: torch.dtype
    reference: Callable[[Tensor], Tensor]


def row_loss(input: Tensor, target: Tensor, weight: Tensor | None, loss: Loss) -> Tensor:
    """Reduced loss of logits and class indices by the kernels; gradient for ``input``."""
    result: Tensor = _RowLoss.apply(input, target, weight, loss)
    return result


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, weight: Tensor | None, loss: Loss) -> Tensor:
        flat, target = _flat(x), target.contiguous()
        rows, shape = target.numel(), _tile(flat)
        kept = torch.empty((KEPT[loss.kind], rows), dtype=torch.float32, device=x.device)
        rows_kernel[(flat.shape[0] * triton.cdiv(flat.shape[1], shape["ROWS"]),)](
            flat, target, kept if weight is None else weight.contiguous(), kept, *flat.stride(), *flat.shape[1:],
            rows, loss.ignore_index, *loss.numbers,
            KIND=loss.kind, MODE=loss.mode, WEIGHTED=weight is not None, **shape,
        )  # fmt: skip
        sums = kept[:2].sum(1) if loss.reduction == "mean" else kept
        ctx.save_for_backward(x, target, kept, sums)
        ctx.loss = loss
        if loss.reduction == "none":
            return kept[0].reshape(target.shape).to(loss.dtype, copy=True)
        if loss.reduction == "sum":
            return kept[0].sum(dtype=torch.float32).to(loss.dtype)
        total, weights = sums.unbind()
        mean = total / weights
        return (mean if loss.empty != 0.0 else mean.masked_fill_(weights == 0.0, 0.0)).to(loss.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, target, kept, sums = ctx.saved_tensors
        loss: Loss = ctx.loss
        if torch.is_grad_enabled() or transform_reason(x, grads[0]) is not None or is_batched_gradient(grads[0]):
            return (*differentiable_gradients(loss.reference, (x,), (True,), grads[0]), None, None, None)
        out = torch.empty_like(x)
        flat, flat_out = _flat(x), _flat(out)
        if flat_out.data_ptr() != out.data_ptr():  # axes that cannot be seen as one: a copy
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            flat_out = _flat(out)
        shape = _tile(flat)
        blocks = flat.shape[0] * triton.cdiv(flat.shape[1], shape["ROWS"])
        reduction = {"none": 0, "sum": 1, "mean": 2 if loss.empty != 0.0 else 3}[loss.reduction]
        slopes_kernel[(blocks, triton.cdiv(flat.shape[2], shape["BLOCK"]))](
            flat, target, grads[0].contiguous(), sums, kept, flat_out, *flat.stride(), *flat_out.stride(),
            *flat.shape[1:], target.numel(), loss.ignore_index, loss.numbers[0],
            KIND=loss.kind, MODE=loss.mode, REDUCTION=reduction, **shape,
        )  # fmt: skip
        return out, None, None, None


def _flat(x: Tensor) -> Tensor:
    """``(C,)``, ``(N, C)`` or ``(N, C, ...)`` as (outer, inner, C); the rows of (N, C) are all inner."""
    if x.ndim <= 2:
        return x[None] if x.ndim == 2 else x[None, None]
    return x.flatten(2).movedim(1, 2)


def _tile(flat: Tensor) -> dict[str, int]:
    """Rows and classes of a program's tile, and its warps."""
    classes = triton.next_power_of_2(flat.shape[2])
    if interpreting():
        return {"ROWS": 4, "BLOCK": 16, "num_warps": 1}
    if flat.shape[0] > 1 or flat.stride(2) != 1:
        return {"ROWS": ACROSS[0], "BLOCK": min(classes, ACROSS[1]), "num_warps": 4}
    if classes >= WIDE:
        return {"ROWS": 1, "BLOCK": WIDE, "num_warps": WARPS}
    return {"ROWS": max(1, ENTRIES // classes), "BLOCK": classes, "num_warps": 4 if classes <= 1024 else WARPS}
