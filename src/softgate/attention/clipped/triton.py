"""Clipped softmax attention on the Triton kernels: one sweep for the log-sum-exp, one for the clipped weights."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from softgate import _triton
from softgate._math import masks
from softgate._math.clipping import resolve_gamma
from softgate.attention.clipped.reference import clipped_softmax_attention_reference


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *positional: Any,
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    return _triton.attention_refuses(query, key, value, attn_mask, dropout_p, backend)


def run(
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
    """Arguments and result of :func:`softgate.attention.clipped_softmax_attention`."""
    from softgate._triton import maps
    from softgate._triton.attention import Call, attend

    query, key, value = masks.cast_for_autocast(query, key, value)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    low = resolve_gamma(gamma, alpha, max_seq_len)

    def reference(q: Tensor, k: Tensor, v: Tensor, _gate: Any, _bias: Any) -> Tensor:
        return clipped_softmax_attention_reference(
            q, k, v, attn_mask, 0.0, is_causal, factor, gamma=low, zeta=zeta, window=window
        )

    call = Call(maps.CLIPPED, factor, *masks.window_bounds(window, is_causal), reference, gamma=low, zeta=zeta)
    with masks.without_autocast(query):
        return attend(query, key, value, call, mask=attn_mask)
