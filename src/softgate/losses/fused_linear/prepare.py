"""Checks of the tensors of a fused linear loss, and their common form: rows of features and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type
from softgate.losses.fused_linear.settings import Settings

__all__: list[str] = []

_INDEX_DTYPES = (torch.int64, torch.int32, torch.uint8)


@dataclass(frozen=True)
class Prepared:
    """Rows of features and their labels.

    Attributes:
        x: (M, D).
        labels: (M,) int64, shifted; any number where ``keep`` is False.
        keep: (M,), whether a row counts.
    """

    x: Tensor
    labels: Tensor
    keep: Tensor


def check_tensors(
    input: Any, weight: Any, target: Any, bias: Any, class_weight: Any, settings: Settings, sharded: bool
) -> None:
    """Raise unless the tensors fit together; ``sharded``: other processes hold further classes."""
    check_float_tensor("input", input)
    check_float_tensor("weight", weight)
    if input.ndim == 0 or weight.ndim != 2 or weight.shape[1] != input.shape[-1] or weight.shape[0] == 0:
        raise ArgumentValueError(
            f"weight must have shape (V, d) with V at least 1 and d the last size of input, got "
            f"{tuple(weight.shape)} for input {tuple(input.shape)}"
        )
    classes = None if sharded else weight.shape[0]
    autocast = not input.is_meta and torch.is_autocast_enabled(input.device.type)
    if input.dtype != weight.dtype and not autocast:
        raise ArgumentTypeError(f"weight must have the dtype of input, {input.dtype}, got {weight.dtype}")
    for name, value in (("bias", bias), ("class_weight", class_weight)):
        if value is None:
            continue
        check_float_tensor(name, value)
        size = weight.shape[0] if name == "bias" else classes
        if value.ndim != 1 or (size is not None and value.shape[0] != size):
            raise ArgumentValueError(f"{name} must have shape ({size},), got {tuple(value.shape)}")
    if class_weight is not None and class_weight.requires_grad:
        raise ArgumentValueError("class_weight must not require a gradient, got one that does")
    _check_target(input, target, settings, classes)
    check_same_device(input=input, weight=weight, target=target, bias=bias, class_weight=class_weight)


def _check_target(input: Tensor, target: Any, settings: Settings, classes: int | None) -> None:
    if not isinstance(target, Tensor):
        bad_type("target", target, "a torch.Tensor")
    if target.dtype not in _INDEX_DTYPES:
        raise ArgumentTypeError(f"target must hold class indices (int64, int32 or uint8), got {target.dtype}")
    if target.shape != input.shape[:-1]:
        raise ArgumentValueError(f"target must have shape {tuple(input.shape[:-1])}, got {tuple(target.shape)}")
    if settings.shift and target.ndim == 0:
        raise ArgumentValueError("shift must be 0 for a single row, got a target without positions")
    if target.is_cpu and target.numel() and classes is not None and transform_reason(input, target) is None:
        wrong = target[(target != settings.ignore_index) & ((target < 0) | (target >= classes))]
        if wrong.numel():
            raise ArgumentValueError(f"target must be in [0, {classes}) or equal to ignore_index="
                                     f"{settings.ignore_index}, got {int(wrong[0])}")  # fmt: skip


def prepare(input: Tensor, target: Tensor, settings: Settings) -> Prepared:
    """Flatten the rows; with ``shift=k`` a row is scored on the label k positions on, the last k rows do not count."""
    labels = target.long()
    if settings.shift:
        steps = min(settings.shift, labels.shape[-1])
        beyond = torch.full_like(labels[..., :steps], settings.ignore_index)
        labels = torch.cat((labels[..., steps:], beyond), dim=-1)
    labels = labels.reshape(-1)
    return Prepared(input.reshape(labels.shape[0], input.shape[-1]), labels, labels != settings.ignore_index)
