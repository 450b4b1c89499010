"""Masks and arguments of attention, shared by every function shaped like scaled_dot_product_attention.

A mask argument (bool, True = attend, or float, added to the scores), bottom-right aligned causality and a sliding
window become one :class:`Mask`: *allowed* says which pairs exist at all, *bias* is what is added to their scores.
Softmax attention merges both into one additive mask; sigmoid, softplus and linear attentions, for which adding -inf
means nothing, take them separately. A query without any allowed key gets the output 0 and sends no gradient.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

_HALF = (torch.float16, torch.bfloat16)

#: A sliding window: the number of keys a query sees, its own included, or how many it sees (left, right) of its own
#: position, -1 for all.
Window = int | tuple[int, int]


class Mask(NamedTuple):
    """Which pairs of query and key exist, and what is added to their scores.

    Attributes:
        allowed: bool, broadcastable to (…, H, T, S), True = attend; None if every pair exists.
        bias: float, broadcastable to (…, H, T, S), finite wherever ``allowed``; None if nothing is added.
    """

    allowed: Tensor | None
    bias: Tensor | None


def check_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
    window: Any = None,
) -> None:
    """Raise unless the arguments fit together; nothing is computed and no tensor data is read.

    Args:
        query: (…, H, T, D).
        key: (…, G, S, D).
        value: (…, G, S, Dv).
        attn_mask: bool or float, broadcastable to (…, H, T, S), or None.
        dropout_p: in [0, 1).
        is_causal: bool; combines with ``attn_mask`` (both must allow a pair).
        scale: finite number or None.
        enable_gqa: H may then be a multiple of G.
        window: positive int or None.

    Raises:
        ArgumentTypeError: a wrong type, or dtypes that differ outside autocast.
        ArgumentValueError: shapes, devices or numbers that do not fit.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_float_tensor(name, tensor)
        if tensor.ndim < 3:
            raise ArgumentValueError(f"{name} must have shape (..., heads, length, features), got {_shape(tensor)}")
    if not isinstance(enable_gqa, bool):
        bad_type("enable_gqa", enable_gqa, "a bool")
    if not isinstance(is_causal, bool):
        bad_type("is_causal", is_causal, "a bool")
    check_same_device(query=query, key=key, value=value)
    _check_dtypes(query, key, value)
    _check_qkv_shapes(query, key, value, enable_gqa)
    if check_number("dropout_p", dropout_p) != 0.0:
        check_number("dropout_p", dropout_p, low=0.0, high=1.0, high_open=True)
    if scale is not None:  # not math.isfinite: torch.compile cannot trace it where shapes and numbers are dynamic
        check_number("scale", scale, low_open=True, high_open=True)
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int):
            bad_type("window", window, "a positive int or None")
        if window < 1:
            bad_value("window", window, "a positive int or None")
    if attn_mask is not None:
        _check_mask(attn_mask, query, key)


def check_window(window: Any, is_causal: bool) -> None:
    """Raise unless ``window`` is None, a positive int or a (left, right) pair that causality does not contradict.

    For the functions that take pairs; :func:`check_attention` admits ints alone.
    """
    allowed = "a positive int, a pair (left, right) of ints of at least -1, or None"
    if window is None:
        return
    pair = isinstance(window, tuple)
    sizes: tuple[Any, ...] = window if isinstance(window, tuple) else (window,)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        bad_type("window", window, allowed)
    if (pair and len(sizes) != 2) or min(sizes) < (-1 if pair else 1):
        bad_value("window", window, allowed)
    if is_causal and pair and sizes[1] > 0:
        bad_value("window", window, "a pair whose right end is 0 or -1 with is_causal=True")


def window_bounds(window: Window | None, is_causal: bool) -> tuple[int | None, int | None]:
    """How many keys a query sees left and right of its own position; None where there is no bound."""
    if window is None:
        return None, 0 if is_causal else None
    if isinstance(window, int):
        return window - 1, 0 if is_causal else window - 1
    left, right = (None if size < 0 else size for size in window)
    return left, 0 if is_causal else right


def _check_dtypes(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dtype == key.dtype == value.dtype or autocast_dtype(query) is not None:
        return
    raise ArgumentTypeError(
        f"query, key and value must have one dtype outside autocast, got {query.dtype}, {key.dtype} and {value.dtype}"
    )


def _check_qkv_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    shapes = f"query {_shape(query)}, key {_shape(key)}, value {_shape(value)}"
    if not query.ndim == key.ndim == value.ndim:
        raise ArgumentValueError(f"query, key and value must have equally many dimensions, got {shapes}")
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ArgumentValueError(f"query, key and value must have the same batch dimensions, got {shapes}")
    if key.shape[:-1] != value.shape[:-1]:
        raise ArgumentValueError(f"key and value must agree in heads and length, got {shapes}")
    if query.shape[-1] != key.shape[-1] or query.shape[-1] == 0:
        raise ArgumentValueError(f"query and key must have the same number of features, at least 1, got {shapes}")
    heads, kv_heads = query.shape[-3], key.shape[-3]
    if heads == kv_heads:
        return
    if not enable_gqa:
        order = "" if query.shape[-2] != kv_heads else (
            ", or query.transpose(1, 2) if its shape is (batch, length, heads, features)"
        )  # fmt: skip
        raise ArgumentValueError(
            f"key has {kv_heads} heads and query {heads}: pass enable_gqa=True for grouped queries{order}, got {shapes}"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ArgumentValueError(f"query heads must be a multiple of key heads with enable_gqa=True, got {shapes}")


def _check_mask(attn_mask: Any, query: Tensor, key: Tensor) -> None:
    if not isinstance(attn_mask, Tensor):
        bad_type("attn_mask", attn_mask, "a bool or float tensor or None")
    if attn_mask.layout is not torch.strided or attn_mask.is_nested:
        raise ArgumentTypeError("attn_mask must be a dense (strided) tensor")
    if attn_mask.dtype is not torch.bool and not attn_mask.dtype.is_floating_point:
        raise ArgumentTypeError(f"attn_mask must be bool (True = attend) or float (added), got {attn_mask.dtype}")
    check_same_device(query=query, attn_mask=attn_mask)
    full = (*query.shape[:-1], key.shape[-2])
    fits = 2 <= attn_mask.ndim <= len(full) and all(
        have in (1, want) for have, want in zip(reversed(attn_mask.shape), reversed(full), strict=False)
    )
    if not fits:
        raise ArgumentValueError(
            f"attn_mask must broadcast to (..., query heads, query length, key length) = {full}, "
            f"got {_shape(attn_mask)}"
            + ("; pass a mask (batch, keys) as mask[:, None, None, :]" if _is_padding(attn_mask, query, key) else "")
        )


def _is_padding(mask: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether ``mask`` has the shape (batch, keys) of a padding mask, as tokenizers give it."""
    return query.ndim == 4 and _shape(mask) == (query.shape[0], key.shape[-2])


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def resolve_mask(
    attn_mask: Tensor | None, query: Tensor, key: Tensor, is_causal: bool = False, window: Window | None = None
) -> Mask:
    """Combine a mask argument, causality and a sliding window into one :class:`Mask`.

    Args:
        attn_mask: bool or float, broadcastable to (…, H, T, S); entries of -inf count as "not allowed".
        query: (…, H, T, D), only its length and device are read.
        key: (…, G, S, D), likewise.
        is_causal: see :func:`causal_mask`.
        window: see :func:`causal_mask`.
    """
    allowed = structural_mask(query.shape[-2], key.shape[-2], is_causal=is_causal, window=window, device=query.device)
    return split_mask(attn_mask, allowed)


def split_mask(attn_mask: Tensor | None, allowed: Tensor | None) -> Mask:
    """A mask argument (or a part of one) and a bool mask of the same pairs as one :class:`Mask`."""
    if attn_mask is None:
        return Mask(allowed, None)
    if attn_mask.dtype is torch.bool:
        return Mask(attn_mask if allowed is None else attn_mask & allowed, None)
    finite = attn_mask != float("-inf")
    return Mask(finite if allowed is None else finite & allowed, attn_mask.masked_fill(~finite, 0.0))


def structural_mask(
    queries: int, keys: int, *, is_causal: bool, window: Window | None, device: torch.device | None = None
) -> Tensor | None:
    """The (T, S) mask of causality and window, or None where they allow everything (as for one causal query)."""
    left, right = window_bounds(window, is_causal)
    sees_all = (left is None or left + 1 >= keys) and (right is None or right + 1 >= queries)
    if sees_all:
        return None
    return causal_mask(queries, keys, window=window, is_causal=is_causal, device=device)


def causal_mask(
    queries: int,
    keys: int,
    *,
    window: Window | None = None,
    is_causal: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Bool mask (T, S), aligned at the bottom right: the last query stands at the last key.

    Query i stands at position p = i + S - T. Causal: it sees keys j <= p. With a window of w it sees those with
    p - w < j (w keys, its own included), and without causality those with ``|p - j| < w``; with a window (left, right)
    those with p - left <= j <= p + right.
    """
    position = torch.arange(queries, device=device)[:, None] + (keys - queries)
    distance = position - torch.arange(keys, device=device)
    left, right = window_bounds(window, is_causal)
    allowed = torch.ones_like(distance, dtype=torch.bool) if right is None else distance >= -right
    return allowed if left is None else allowed & (distance <= left)


def key_padding_mask(keep: Tensor) -> Tensor:
    """Turn ``keep`` (B, S), True = real token, into an attention mask (B, 1, 1, S)."""
    if not isinstance(keep, Tensor) or keep.dtype is not torch.bool:
        raise ArgumentTypeError(f"keep must be a bool tensor, got {getattr(keep, 'dtype', type(keep).__name__)}")
    if keep.ndim != 2:
        raise ArgumentValueError(f"keep must have shape (batch, length), got {_shape(keep)}")
    return keep[:, None, None, :]


def additive_mask(mask: Mask, dtype: torch.dtype) -> Tensor | None:
    """One float mask for kernels that add it to the scores: ``bias`` where allowed, -inf elsewhere; None if empty."""
    if mask.allowed is None:
        return None if mask.bias is None else mask.bias.to(dtype)
    if mask.bias is None:
        zero = torch.zeros((), dtype=dtype, device=mask.allowed.device)
        return zero.expand(mask.allowed.shape).masked_fill(~mask.allowed, float("-inf"))
    return mask.bias.to(dtype).masked_fill(~mask.allowed, float("-inf"))


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the last dimension among ``allowed`` entries; a row without any is 0 and has zero gradient."""
    if allowed is None:
        return scores.softmax(-1)
    kept = scores.masked_fill(~allowed, float("-inf"))
    # An all -inf row would be 0/0 in forward and NaN in backward, so such rows get finite scores first.
    kept = kept.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return kept.softmax(-1).masked_fill(~allowed, 0.0)


def masked_weights(weights: Tensor, allowed: Tensor | None) -> Tensor:
    """Weights of an attention without normalisation over keys: exactly 0, with zero gradient, where not ``allowed``."""
    return weights if allowed is None else weights.masked_fill(~allowed, 0.0)


def attention_scores(query: Tensor, key: Tensor, scale: float | None, mask: Mask) -> Tensor:
    """``scale · q kᵀ + bias`` in the accumulation dtype, (…, H, T, S); ``key`` may have fewer heads (GQA)."""
    dtype = accumulation_dtype(query.dtype)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query.to(dtype) * factor) @ expand_kv_heads(key.to(dtype), query.shape[-3]).transpose(-1, -2)
    return scores if mask.bias is None else scores + mask.bias.to(dtype)


def expand_kv_heads(tensor: Tensor, heads: int) -> Tensor:
    """(…, G, S, D) -> (…, H, S, D): query head h uses key/value head h // (H/G)."""
    groups = tensor.shape[-3]
    return tensor if groups == heads else tensor.repeat_interleave(heads // groups, dim=-3)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit dtypes, otherwise the dtype itself."""
    return torch.float32 if dtype in _HALF else dtype


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype autocast asks for on the tensor's device, None outside autocast."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype inside autocast, as scaled_dot_product_attention does; float64 is left alone."""
    dtype = autocast_dtype(tensors[0])
    if dtype is None or any(tensor.dtype is torch.float64 for tensor in tensors):
        return tensors
    return tuple(tensor.to(dtype) for tensor in tensors)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Context in which operations keep the dtypes they are given, whatever autocast surrounds the call."""
    if autocast_dtype(tensor) is None:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
