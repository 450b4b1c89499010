"""Checks of the arguments that softmax, log_softmax and logsumexp share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate import native
from softgate._checks import check_dim, check_float_tensor
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ALGORITHMS = (*native.ALGORITHMS, "torch")
EMPTY = ("nan", "zero")


def check_arguments(
    x: Any, dim: Any, algorithm: Any, out: Any, dtype: Any, empty: Any, num_threads: Any, *, reduces: bool
) -> int:
    """Check every argument and return ``dim`` as a non-negative index.

    Raises:
        TypeError, ValueError: naming the argument, its value and what it may be.
    """
    check_float_tensor("x", x)
    if x.dtype not in DTYPES:
        raise ArgumentTypeError(f"x must be float64, float32, bfloat16 or float16, got {x.dtype}")
    index = check_dim(dim, x.ndim)
    check_choice("algorithm", algorithm, ALGORITHMS)
    check_choice("empty", empty, EMPTY)
    if dtype is not None and dtype not in DTYPES:
        bad_value("dtype", dtype, "None, float64, float32, bfloat16 or float16")
    if num_threads is not None:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int):
            bad_type("num_threads", num_threads, "None or an int")
        if num_threads < 1:
            bad_value("num_threads", num_threads, "at least 1")
    if out is not None:
        shape = x.shape[:index] + x.shape[index + 1 :] if reduces else x.shape
        _check_out(x, out, torch.Size(shape), dtype or x.dtype)
    return index


def _check_out(x: Tensor, out: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    check_float_tensor("out", out)
    if out.dtype != dtype:
        raise ArgumentTypeError(f"out must be {dtype} like the result, got {out.dtype}")
    if out.shape != shape:
        raise ArgumentValueError(f"out must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.device != x.device:
        raise ArgumentValueError(f"out must be on {x.device} as x is, got {out.device}")
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ArgumentValueError("out cannot be given where a gradient is needed; call without it or under no_grad")
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ArgumentValueError(f"out must not share memory between its entries, got strides {out.stride()}")
    exact = out.data_ptr() == x.data_ptr() and out.shape == x.shape and out.stride() == x.stride()
    if not exact and _overlap(x, out):
        raise ArgumentValueError("out must be x itself or not overlap it in memory; it overlaps x partly")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors share memory; others are computed aside and copied, so for them it is harmless."""
    if a.is_meta or not (a.is_contiguous() and b.is_contiguous()) or a.numel() == 0 or b.numel() == 0:
        return False
    low_a, low_b = a.data_ptr(), b.data_ptr()
    return low_a < low_b + b.nbytes and low_b < low_a + a.nbytes
