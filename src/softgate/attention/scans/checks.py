"""Checks of arguments that the scans share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math.masks import accumulation_dtype
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError


class ScanOutput(NamedTuple):
    """Outputs of all tokens, and the state after the last one, from which the sequence can be continued."""

    output: Tensor
    state: Tensor


def check_tensors(required: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Raise unless all are floating-point tensors of one device and dtype; float32 may be mixed in.

    The first one decides the dtype; optional ones may be None.
    """
    given = {**required, **{name: tensor for name, tensor in optional.items() if tensor is not None}}
    for name, tensor in given.items():
        check_float_tensor(name, tensor)
    check_same_device(**given)
    first, dtype = next((name, tensor.dtype) for name, tensor in given.items())
    for name, tensor in given.items():
        if tensor.dtype not in (dtype, accumulation_dtype(dtype)):
            raise ArgumentTypeError(f"{name} must have the dtype of {first} ({dtype}) or float32, got {tensor.dtype}")


def check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], meaning: str) -> None:
    """Raise unless ``tensor`` has exactly this shape; None passes."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ArgumentValueError(f"{name} must have shape {meaning} = {shape}, got {tuple(tensor.shape)}")


def check_stable(A: Tensor, allow_unstable: bool) -> None:
    """Raise for a transition that grows, where reading the values costs nothing: on the CPU and outside transforms."""
    if not isinstance(allow_unstable, bool):
        raise ArgumentTypeError(f"allow_unstable must be a bool, got {type(allow_unstable).__name__}")
    if allow_unstable or A.device.type != "cpu" or transform_reason(A) is not None:
        return
    if bool((A <= 0).any()):
        raise ArgumentValueError(
            f"A must be positive, so that the state decays (or pass allow_unstable=True), got {float(A.min()):.3g}"
        )


def widen(*tensors: Tensor | None) -> list[Any]:
    """The tensors in the accumulation dtype of the first: float32 for 16-bit ones."""
    assert tensors[0] is not None
    dtype = accumulation_dtype(tensors[0].dtype)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def zeros_or(state: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``state``, or zeros of this shape in the dtype of ``like``."""
    return torch.zeros(shape, dtype=like.dtype, device=like.device) if state is None else state
