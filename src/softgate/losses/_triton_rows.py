"""Losses of dense logits on the Triton kernels: one sweep over the classes, and one for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate import _triton
from softgate.losses._row_kernel import kind_refuses

__all__: list[str] = []

#: Kinds of rows, as :mod:`softgate._triton.row_sums` counts them (which is not imported before a kernel runs).
SOFTMAX, STABLEMAX, QUADRATIC, STANDARD, HINGE = range(5)


def run(
    kind: int,
    reference: Callable[[Tensor], Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    *,
    numbers: tuple[float, ...] = (),
    mode: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Reduced loss of logits of any number of dimensions and class indices.

    Args:
        kind: which loss.
        reference: the same from the input in plain torch.
        input: logits.
        target: class indices.
        weight: weight of every class or None.
        ignore_index: target of rows that do not count.
        reduction: ``"mean"``, ``"sum"``, ``"none"``, or ``"mean or 0"`` for a mean that is 0 over no rows.
        numbers: at most three parameters of the loss.
        mode: which branch of it.
        dtype: of the result, by default that of ``input``.
    """
    from softgate._triton.row_losses import Loss, row_loss

    first, second, third = (*numbers, 0.0, 0.0, 0.0)[:3]
    dtype = dtype or input.dtype
    loss = Loss(kind, (first, second, third), mode, ignore_index, reduction, dtype, reference)
    return row_loss(input, target, weight, loss)


def kernel(
    kind: int, reference: Callable[..., Tensor], options: Callable[..., tuple[tuple[float, ...], int]]
) -> Callable[..., Tensor]:
    """The loss with the signature of ``F.cross_entropy`` on the kernels.

    Args:
        kind: which loss.
        reference: the same in plain torch.
        options: numbers and mode from the keyword arguments that ``F.cross_entropy`` does not have.
    """

    def run_call(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        **given: Any,
    ) -> Tensor:
        numbers, mode = options(**given)
        plain = partial(
            reference, target=target, weight=weight, ignore_index=ignore_index, reduction=reduction, **given
        )
        return run(kind, plain, input, target, weight, ignore_index, reduction, numbers=numbers, mode=mode)

    return run_call


def refuses(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    **options: Any,
) -> str | None:
    """Why the kernels cannot run this call, None if they can."""
    return _triton.refuses(input, "auto") or kind_refuses(input, target, weight, label_smoothing)
