"""Lists of candidates: one row of scores per context, padded where a context has fewer of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type

__all__: list[str] = []

REDUCTIONS = ("mean", "sum", "none")


def can_read(*tensors: Tensor | None) -> bool:
    """Whether values may be looked at: not while tracing or inside a transform, nor where it would stall a device."""
    given = [tensor for tensor in tensors if tensor is not None]
    return all(tensor.is_cpu for tensor in given) and transform_reason(*given) is None


def check_lists(first: str, /, **tensors: Any) -> None:
    """Raise unless all ``tensors`` are floating-point and of one shape (..., n), that of argument ``first``."""
    for name, tensor in tensors.items():
        check_float_tensor(name, tensor)
    shape = tensors[first].shape
    if len(shape) == 0 or shape[-1] == 0:
        raise ArgumentValueError(f"{first} must have shape (..., n) with n at least 1, got {tuple(shape)}")
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ArgumentValueError(
                f"{name} must have the shape of {first}, {tuple(shape)}, got {tuple(tensor.shape)}"
            )
    check_same_device(**tensors)


def as_mask(name: str, mask: Any, like: Tensor) -> Tensor | None:
    """``mask`` (bool, or numbers that are 0 where nothing stands) as a bool tensor of the shape of ``like``."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        bad_type(name, mask, "a tensor of bools, ints or floats, or None")
    if mask.layout is not torch.strided or mask.is_nested or mask.is_complex():
        raise ArgumentTypeError(f"{name} must be a dense tensor of bools, ints or floats, got {mask.dtype}")
    if mask.shape != like.shape:
        raise ArgumentValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(mask.shape)}")
    check_same_device(**{name: mask, "the other": like})
    return mask if mask.dtype is torch.bool else mask != 0


def reduce_contexts(rows: Tensor, kept: Tensor | None, reduction: str) -> Tensor:
    """Mean over the contexts that have a candidate, their sum, or the losses themselves; 0 without any context."""
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if kept is None:
        return rows.sum() / max(rows.numel(), 1)
    return rows.sum() / kept.any(-1).sum().clamp_min(1)
