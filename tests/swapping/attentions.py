"""Attention functions of the tests: honest ones and ones with a particular fault."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math import masks


def _scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    return masks.attention_scores(query, key, scale, masks.Mask(None, None))


def _finish(weights: Tensor, value: Tensor, heads: int) -> Tensor:
    return (weights @ masks.expand_kv_heads(value, heads).to(weights.dtype)).to(value.dtype)


def squared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    power: float = 2.0,
) -> Tensor:
    """Honest: weights are powers of the scores, divided by the number of keys seen."""
    mask = masks.resolve_mask(attn_mask, query, key, is_causal)
    scores = masks.attention_scores(query, key, scale, mask)
    weights = masks.masked_weights(scores.abs() ** power, mask.allowed)
    seen = torch.ones_like(weights) if mask.allowed is None else mask.allowed.expand_as(weights).to(weights.dtype)
    return _finish(weights / seen.sum(-1, keepdim=True).clamp(min=1), value, query.shape[-3])


def blind(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **_: Any) -> Tensor:
    """Fault: takes a mask and forgets it."""
    return _finish(_scores(query, key, scale).softmax(-1), value, query.shape[-3])


def causal_only(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **_: Any) -> Tensor:
    """Fault: causal, whatever the mask says, so padding is seen."""
    allowed = masks.causal_mask(query.shape[-2], key.shape[-2])
    return _finish(masks.masked_softmax(_scores(query, key, scale), allowed), value, query.shape[-3])


def softmax_then_mask(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False,
    scale: float | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    """Fault: normalises over all keys and masks afterwards, so hidden keys change the weights of the others."""
    allowed = masks.resolve_mask(attn_mask, query, key, is_causal).allowed
    weights = _scores(query, key, scale).softmax(-1)
    return _finish(masks.masked_weights(weights, allowed), value, query.shape[-3])


def over_queries(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Fault: the result depends on how many queries come at once, so decoding differs from computing all at once."""
    return squared(query, key, value, attn_mask, **options) / query.shape[-2]


def broken(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Fault: NaN."""
    return blind(query, key, value) * float("nan")


def no_masks(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """A linear attention: it cannot express a mask and says so."""
    from softgate.errors import ArgumentValueError

    if attn_mask is not None or options.get("is_causal"):
        raise ArgumentValueError("attn_mask must be None: sums over all keys are shared by all queries")
    return (query.relu() @ (key.relu().transpose(-1, -2) @ value)) / key.shape[-2]
