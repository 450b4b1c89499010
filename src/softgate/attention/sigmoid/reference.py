"""Plain-torch sigmoid attention: the formula as it stands, for every dtype, device and transform.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate._math import masks

#: What may be added to the scores before the sigmoid; see :func:`softgate.attention.sigmoid_attention`.
Bias = float | Tensor | Literal["neg_log_n", "neg_log_visible"]


def resolve_bias(bias: Bias | None, seq_len: int | None, keys: int) -> float | Tensor | Literal["neg_log_visible"]:
    """The bias with None and ``"neg_log_n"`` replaced by ``-ln n``, n the training length or else ``keys``."""
    if bias is None or (isinstance(bias, str) and bias == "neg_log_n"):
        return -math.log(max(keys if seq_len is None else seq_len, 1))
    return bias  # type: ignore[return-value]


def bias_of_pairs(bias: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A bias per head (…, H) as (…, H, 1, 1) in the dtype of the scores; numbers stay numbers."""
    return bias.to(dtype)[..., None, None] if isinstance(bias, Tensor) else bias


def visible_keys(allowed: Tensor | None, keys: int) -> int | Tensor:
    """How many of ``keys`` each query sees, broadcastable to (…, H, T, 1); a number if ``allowed`` is None."""
    if allowed is None:
        return keys
    count = allowed.sum(-1, keepdim=True)
    return count if allowed.shape[-1] == keys else count * keys  # one entry stands for every key


def neg_log_visible(visible: int | Tensor, like: Tensor) -> Tensor:
    """``-ln`` of the number of visible keys, 0 where there is none, in the dtype of ``like``."""
    visible = like.new_full((1, 1), visible) if isinstance(visible, int) else visible.to(like.dtype)
    return -visible.clamp_min(1).log()


def alibi_bias(slopes: Tensor, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """``-slope · |i + S - T - j|``, (…, H, T, S).

    The distance itself, not a term per key: a shift of a row, which softmax forgets, changes a sigmoid.
    """
    position = torch.arange(queries, device=slopes.device)[:, None] + (keys - queries)
    distance = (position - torch.arange(keys, device=slopes.device)).abs()
    return -slopes.to(dtype)[..., None, None] * distance.to(dtype)


def soft_capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores squeezed into (-softcap, softcap) by a tanh."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def sigmoid_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bias: Bias | None = None,
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """O = (m ⊙ σ(q kᵀ·scale + e + b)) v; see :func:`softgate.attention.sigmoid_attention` for the arguments."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        mask = masks.resolve_mask(attn_mask, query, key, is_causal, window)
        scores = masks.attention_scores(query, key, scale, masks.Mask(None, None))
        scores = soft_capped(scores, softcap)
        queries, keys = scores.shape[-2:]
        if alibi_slopes is not None:
            scores = scores + alibi_bias(alibi_slopes, queries, keys, scores.dtype)
        if mask.bias is not None:
            scores = scores + mask.bias.to(scores.dtype)
        shift = resolve_bias(bias, seq_len, keys)
        if isinstance(shift, str):
            scores = scores + neg_log_visible(visible_keys(mask.allowed, keys), scores)
        else:
            scores = scores + bias_of_pairs(shift, scores.dtype)
        weights = masks.masked_weights(torch.sigmoid(scores), mask.allowed)
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        return (weights @ masks.expand_kv_heads(value.to(weights.dtype), query.shape[-3])).to(query.dtype)
