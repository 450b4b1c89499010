"""Checks of the arguments that only sigmoid attention has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math import masks
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

NAMED_BIASES = ("neg_log_n", "neg_log_visible")


def check_options(
    query: Tensor, bias: Any, seq_len: Any, alibi_slopes: Any, window: Any, softcap: Any, is_causal: bool
) -> None:
    """Raise unless the options fit ``query`` (…, H, T, D), which has been checked already."""
    check_bias(query, bias)
    check_seq_len(seq_len)
    if alibi_slopes is not None:
        _check_slopes(query, alibi_slopes)
    masks.check_window(window, is_causal)
    if softcap is not None:
        check_number("softcap", softcap, low=0.0, low_open=True, high_open=True)


def check_bias(query: Tensor, bias: Any) -> None:
    """Raise unless ``bias`` is None, a number, a known name or a tensor that broadcasts to (…, H)."""
    if bias is None:
        return
    if isinstance(bias, str):
        check_choice("bias", bias, NAMED_BIASES)
    elif isinstance(bias, Tensor):
        check_float_tensor("bias", bias)
        check_same_device(query=query, bias=bias)
        _check_per_head("bias", bias, query)
    elif isinstance(bias, bool) or not isinstance(bias, int | float):
        bad_type("bias", bias, "None, a number, a tensor of one bias per head, 'neg_log_n' or 'neg_log_visible'")
    else:
        check_number("bias", bias)


def check_seq_len(seq_len: Any) -> None:
    """Raise unless ``seq_len`` is None or a positive int."""
    if seq_len is None:
        return
    if isinstance(seq_len, bool) or not isinstance(seq_len, int):
        bad_type("seq_len", seq_len, "a positive int or None")
    if seq_len < 1:
        bad_value("seq_len", seq_len, "a positive int or None")


def _check_slopes(query: Tensor, slopes: Any) -> None:
    check_float_tensor("alibi_slopes", slopes)
    check_same_device(query=query, alibi_slopes=slopes)
    # 16 bits would move far keys by whole units; float64 is for float64 queries.
    if slopes.dtype not in (torch.float32, masks.accumulation_dtype(query.dtype)):
        raise ArgumentTypeError(f"alibi_slopes must be float32, got {slopes.dtype}")
    heads = query.shape[-3]
    if slopes.ndim == 0 or slopes.shape[-1] != heads:
        raise ArgumentValueError(f"alibi_slopes must have one slope for each of {heads} heads, got {_shape(slopes)}")
    _check_per_head("alibi_slopes", slopes, query)


def _check_per_head(name: str, tensor: Tensor, query: Tensor) -> None:
    full = query.shape[:-2]
    fits = tensor.ndim <= len(full) and all(
        have in (1, want) for have, want in zip(reversed(tensor.shape), reversed(full), strict=False)
    )
    if not fits:
        raise ArgumentValueError(
            f"{name} must broadcast to the batch and the query heads {tuple(full)}, got shape {_shape(tensor)}"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
