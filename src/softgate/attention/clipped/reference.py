"""Plain-torch clipped softmax attention: the formula as it stands, for every dtype, device and transform.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from softgate._math import masks
from softgate._math.clipping import resolve_gamma, stretch_and_clip


def clipped_softmax_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gamma: float | None = None,
    alpha: float | None = None,
    max_seq_len: int | None = None,
    zeta: float = 1.0,
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``clip((ζ - γ) softmax(q kᵀ·scale + mask) + γ, 0, 1) v``, arguments as for ``clipped_softmax_attention``.

    A masked key has the softmax 0, so its weight is ``clip(γ) = 0`` too.
    """
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        mask = masks.resolve_mask(attn_mask, query, key, is_causal, window)
        p_BHTS = masks.masked_softmax(masks.attention_scores(query, key, scale, mask), mask.allowed)
        weights_BHTS = stretch_and_clip(p_BHTS, resolve_gamma(gamma, alpha, max_seq_len), zeta)
        if dropout_p > 0.0:
            weights_BHTS = F.dropout(weights_BHTS, dropout_p)
        y_BHTD = weights_BHTS @ masks.expand_kv_heads(value.to(weights_BHTS.dtype), query.shape[-3])
        return y_BHTD.to(query.dtype)
