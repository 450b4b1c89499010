"""What the losses of support vector machines share: hinge, penalty on the head, reduction, arguments, module form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError, check_choice
from softgate.losses._hinge_kernel import KernelRows, PlainRows, kernel_rows
from softgate.losses._targets import class_axis, hide_ignored, reduce_rows, split_ignored

__all__: list[str] = []

HINGES = ("squared", "linear")
REGULARIZERS = ("sum_half", "mean")


def hinge_of(violation: Tensor, hinge: str) -> Tensor:
    """``max(0, v)`` for ``"linear"``, its square for ``"squared"``; NaN stays NaN."""
    positive = violation.clamp(min=0.0)
    return positive.square() if hinge == "squared" else positive


def penalty_of(head_weight: Tensor, reg: str | None) -> Tensor:
    """Penalty on the weights of a head: half the sum of squares, their mean, or 0; 16-bit weights in float32."""
    wide = head_weight.to(compute_dtype(head_weight.dtype))
    if reg is None:
        return wide.new_zeros(())
    return 0.5 * wide.square().sum() if reg == "sum_half" else wide.square().mean()


def rows_of_indices(
    by_kernel: bool,
    function: KernelRows,
    plain: PlainRows,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    margin: float,
    hinge: str,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Row losses for class indices, which rows count (None for all), and the weights of their classes.

    Args:
        by_kernel: take ``function``, else ``plain``.
        function: the kernel's rows.
        plain: the same in ordinary operations.
        input: scores.
        target: class indices.
        weight: weight of every class or None.
        ignore_index: see :func:`check_loss_arguments`.
        margin: positive.
        hinge: ``"squared"`` or ``"linear"``.
    """
    axis, wide = class_axis(input), compute_dtype(input.dtype)
    index, keep = split_ignored(target, ignore_index)
    row_weight = None if weight is None else weight.to(wide)[index]
    if by_kernel:
        if bool(keep.all()):
            return kernel_rows(function, input, index, margin, hinge, plain), None, row_weight
        shown = hide_ignored(input, target, ignore_index)
        return kernel_rows(function, shown, index, margin, hinge, plain), keep, row_weight
    f = hide_ignored(input, target, ignore_index).to(wide)
    return plain(f, index.unsqueeze(axis), margin, hinge, axis).squeeze(axis), keep, row_weight


def check_margin_options(C: Any, margin: Any, hinge: Any, reg: Any) -> None:
    """Raise unless the options that all margin losses have are allowed."""
    check_number("C", C, low=0.0, low_open=True, high_open=True)
    check_number("margin", margin, low=0.0, low_open=True, high_open=True)
    check_choice("hinge", hinge, HINGES)
    if reg is not None:
        check_choice("reg", reg, REGULARIZERS)


def check_head_weight(head_weight: Any, input: Tensor, reduction: str) -> None:
    """Raise unless ``head_weight`` is None, or a tensor beside ``input`` whose penalty can be added to the result."""
    if head_weight is None:
        return
    check_float_tensor("head_weight", head_weight)
    check_same_device(input=input, head_weight=head_weight)
    if reduction == "none":
        raise ArgumentValueError("head_weight needs reduction 'mean' or 'sum': a penalty belongs to no row")


def objective(
    rows: Tensor,
    keep: Tensor | None,
    row_weight: Tensor | None,
    reduction: str,
    head_weight: Tensor | None,
    reg: str | None,
) -> Tensor:
    """Row losses, weighted with C, reduced as :func:`reduce_rows` does, plus the penalty.

    A mean over nothing is 0 here: without samples only the penalty is left.
    """
    if reduction == "mean" and keep is None and row_weight is None and rows.numel():
        loss = rows.mean()
    elif reduction == "mean":
        counted = torch.ones_like(rows) if row_weight is None else row_weight
        count = (counted if keep is None else torch.where(keep, counted, 0.0)).sum()
        loss = reduce_rows(rows, keep, row_weight, "sum") / torch.where(count == 0.0, 1.0, count)
    else:
        loss = reduce_rows(rows, keep, row_weight, reduction)
    return loss if head_weight is None else loss + penalty_of(head_weight, reg).to(loss.dtype)


class MarginLoss(nn.Module):
    """Module form of a margin loss; subclasses name the function.

    Args:
        function: the loss.
        weight: weight of every class, kept as a buffer.
        options: keyword arguments of the function, shown by ``repr``.
    """

    weight: Tensor | None

    def __init__(self, function: Callable[..., Tensor], weight: Tensor | None, **options: Any) -> None:
        super().__init__()
        check_margin_options(*(options[name] for name in ("C", "margin", "hinge", "reg")))
        self.register_buffer("weight", weight)
        self.function = function
        self.options = options

    def forward(self, input: Tensor, target: Tensor, head_weight: Tensor | None = None) -> Tensor:
        """Loss of scores ``input`` and ``target``; with ``head_weight`` the penalty on it is added."""
        return self.function(input, target, self.weight, head_weight=head_weight, **self.options)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
