"""Checks of tensor arguments that several rooms share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, bad_value


def check_float_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a dense real floating-point tensor, raise ``TypeError`` otherwise."""
    if not isinstance(value, Tensor):
        bad_type(name, value, "a torch.Tensor")
    if value.layout is not torch.strided:
        raise ArgumentTypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if value.is_nested:
        raise ArgumentTypeError(f"{name} must be a dense tensor, got a nested tensor")
    if not value.dtype.is_floating_point or value.dtype.itemsize == 1:  # torch has no arithmetic for float8
        raise ArgumentTypeError(
            f"{name} must have a real floating-point dtype (float16, bfloat16, float32 or float64), got {value.dtype}"
        )
    return value


def check_dim(dim: Any, ndim: int, name: str = "dim") -> int:
    """Return ``dim`` as a non-negative index into ``ndim`` dimensions (0-d tensors count as 1-d, as in torch)."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        bad_type(name, dim, "an int")
    size = max(ndim, 1)
    if not -size <= dim < size:
        raise ArgumentValueError(f"{name} must be in [{-size}, {size - 1}] for a {ndim}-d tensor, got {dim}")
    return dim % size


def check_sizes(**sizes: Any) -> None:
    """Raise unless every named value is a positive int."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            bad_type(name, size, "a positive int")
        if size < 1:
            bad_value(name, size, "a positive int")


def check_number(
    name: str,
    value: Any,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return ``value`` as a float if it is a real number between ``low`` and ``high``; NaN is refused."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad_type(name, value, "a real number")
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    if not (above and below):
        interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"
        raise ArgumentValueError(f"{name} must be a number in {interval}, got {value!r}")
    return float(value)


def check_device(device: str) -> None:
    """Raise :class:`StateError` if ``device`` is one of CUDA and torch sees none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StateError(
            f"device {device!r} was asked for and torch sees no CUDA device: use 'cpu', or see what `softgate doctor` "
            "says of the GPU"
        )


def check_same_device(**tensors: Tensor | None) -> None:
    """Raise unless all given tensors (None is skipped) are on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ArgumentValueError(f"all tensors must be on one device, got {listed}")
