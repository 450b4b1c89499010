"""What every loss shaped like ``F.cross_entropy`` shares: argument checks, ignored rows, weights, smoothing, reduction.

A loss computes the *cost* of every class (for cross-entropy ``-log p``), and :func:`expected_cost` does the rest as
``torch.nn.functional.cross_entropy`` does it. A kernel that computes the cost of the target class only hands its rows
to :func:`reduce_rows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice

__all__: list[str] = []

REDUCTIONS = ("mean", "sum", "none")
_INDEX_DTYPES = (torch.int64, torch.uint8)


def class_axis(input: Tensor) -> int:
    """Axis of the classes: 0 for an unbatched ``(C,)``, 1 for ``(N, C)`` and ``(N, C, d1, ...)``."""
    return 0 if input.ndim == 1 else 1


def has_class_indices(target: Tensor) -> bool:
    """True if ``target`` holds class indices, False if it holds class probabilities."""
    return not target.dtype.is_floating_point


def check_loss_arguments(
    input: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any, label_smoothing: Any = 0.0
) -> None:
    """Raise unless the arguments are what ``F.cross_entropy`` accepts; every message names the argument.

    Args:
        input: logits, real floating point, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)`` with C at least 1.
        target: class indices (int64 or uint8, the shape of ``input`` without its class axis, in ``[0, C)`` or equal to
            ``ignore_index``) or class probabilities (floating point, the shape of ``input``).
        weight: None or a floating-point tensor of shape ``(C,)``.
        ignore_index: an int; not negative only together with class indices.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: number in ``[0, 1]``.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentValueError: a shape, index, device or number is not allowed.
    """
    check_float_tensor("input", input)
    if input.ndim == 0:
        raise ArgumentValueError("input must have shape (C,), (N, C) or (N, C, d1, ...), got a 0-d tensor")
    classes = input.shape[class_axis(input)]
    if classes == 0:
        raise ArgumentValueError(f"input must have at least one class, got shape {tuple(input.shape)}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        bad_type("ignore_index", ignore_index, "an int")
    check_choice("reduction", reduction, REDUCTIONS)
    check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    _check_target(input, target, ignore_index)
    if weight is not None:
        check_float_tensor("weight", weight)
        if weight.shape != (classes,):
            raise ArgumentValueError(f"weight must have shape ({classes},), got {tuple(weight.shape)}")
    check_same_device(input=input, target=target, weight=weight)


def _check_target(input: Tensor, target: Any, ignore_index: int) -> None:
    if not isinstance(target, Tensor):
        bad_type("target", target, "a torch.Tensor")
    if target.layout is not torch.strided or target.is_nested:
        raise ArgumentTypeError(f"target must be a dense (strided) tensor, got layout {target.layout}")
    axis = class_axis(input)
    rows = input.shape[:axis] + input.shape[axis + 1 :]
    if target.dtype.is_floating_point:
        check_float_tensor("target", target)
        if target.shape != input.shape:
            hint = "; class indices must be int64: pass target.long()" if target.shape == rows else ""
            raise ArgumentValueError(f"target of class probabilities must have shape {tuple(input.shape)}, "
                                     f"got {tuple(target.shape)}{hint}")  # fmt: skip
        if ignore_index >= 0:
            raise ArgumentValueError(f"ignore_index must be negative for class probabilities, got {ignore_index}")
        return
    if target.dtype not in _INDEX_DTYPES:
        raise ArgumentTypeError(f"target must be int64 indices or floating-point probabilities, got {target.dtype}")
    if target.shape != rows:
        raise ArgumentValueError(f"target of class indices must have shape {tuple(rows)}, got {tuple(target.shape)}"
                                 f"{_index_hint(input, target)}")  # fmt: skip
    # Elsewhere the values are unknown (tracing) or reading them would stall the device; gather checks them there.
    if target.is_cpu and target.numel() and transform_reason(input, target) is None:
        classes = input.shape[axis]
        low, high = (int(value) for value in target.aminmax())
        if low >= 0 and high < classes:
            return
        wrong = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
        if wrong.numel():
            raise ArgumentValueError(f"target must be in [0, {classes}) or equal to ignore_index={ignore_index}, "
                                     f"got {int(wrong[0])}")  # fmt: skip


def _index_hint(input: Tensor, target: Tensor) -> str:
    """What to type where the shape of ``target`` shows what was meant."""
    if target.shape == input.shape:
        index = f"target.argmax({class_axis(input)})"
        return f"; pass one-hot targets as probabilities (target.float()) or as indices ({index})"
    if input.ndim > 2 and target.shape == input.shape[:-1]:
        given = f"classes are axis 1 of input {tuple(input.shape)}, as in cross_entropy"
        return f"; {given}: pass input.flatten(0, -2) and target.flatten()"
    return ""


def autocast_input(input: Tensor) -> Tensor:
    """``input`` in float32 where autocast is on, as autocast does for ``F.cross_entropy``."""
    if input.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(input.device.type):
        return input.float()
    return input


def split_ignored(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return int64 indices that are safe to gather with, and the mask of rows that count."""
    keep = target != ignore_index
    return torch.where(keep, target, 0).long(), keep


def hide_ignored(input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """``input`` with ignored rows set to 0, so that neither their NaN nor their infinities reach a gradient."""
    if not has_class_indices(target):
        return input
    return input.masked_fill((target == ignore_index).unsqueeze(class_axis(input)), 0.0)


def reduce_rows(rows: Tensor, keep: Tensor | None, row_weight: Tensor | None, reduction: str) -> Tensor:
    """Weight the row losses, drop the ignored ones and reduce, as ``F.cross_entropy`` does for class indices.

    Args:
        rows: loss per row.
        keep: bool, same shape, False where the row is ignored; None if no row is.
        row_weight: weight of each row's target class, or None.
        reduction: ``"mean"`` divides by the summed weight of the kept rows, which gives NaN if none is kept.

    Returns:
        Same shape as ``rows`` for ``"none"``, a 0-d tensor otherwise.
    """
    if row_weight is not None:
        rows = rows * row_weight
    if keep is not None:
        rows = torch.where(keep, rows, 0.0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if keep is None:
        return rows.mean() if row_weight is None else rows.sum() / row_weight.sum()
    counted = keep.to(rows.dtype) if row_weight is None else torch.where(keep, row_weight, 0.0)
    return rows.sum() / counted.sum()


def expected_cost(
    costs: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """Cost of the target under class weights, smoothing and reduction, with the semantics of ``F.cross_entropy``.

    Args:
        costs: cost of every class, ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``; ``-log p`` for cross-entropy.
        target: class indices or class probabilities, see :func:`check_loss_arguments`.
        weight: weight of every class or None.
        ignore_index: rows with this index contribute 0 and are not counted by ``"mean"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
        0-d tensor, or the row losses for ``"none"``, in the dtype of ``costs``. A class of probability 0 adds 0 even
        if its cost is infinite.
    """
    axis = class_axis(costs)
    classes = costs.shape[axis]
    if weight is not None:
        weight = weight.to(costs.dtype)
        wide = weight.reshape((-1,) + (1,) * (costs.ndim - axis - 1))
    if not has_class_indices(target):
        share = target.to(costs.dtype) * (1.0 - label_smoothing) + label_smoothing / classes
        share = share if weight is None else share * wide
        rows = torch.where(share == 0.0, 0.0, share * costs).sum(axis)
        if reduction == "none":
            return rows
        return rows.sum() if reduction == "sum" else rows.sum() / rows.numel() if rows.numel() else rows.mean()
    index, keep = split_ignored(target, ignore_index)
    rows = costs.gather(axis, index.unsqueeze(axis)).squeeze(axis)
    row_weight = None if weight is None else weight[index]
    hard = reduce_rows(rows, keep, row_weight, reduction)
    if label_smoothing == 0.0:
        return hard
    spread = torch.where(keep, (costs if weight is None else costs * wide).sum(axis) / classes, 0.0)
    if reduction != "none":
        spread = spread.sum()
    if reduction == "mean":
        spread = spread / (keep.to(costs.dtype) if row_weight is None else torch.where(keep, row_weight, 0.0)).sum()
    return (1.0 - label_smoothing) * hard + label_smoothing * spread
