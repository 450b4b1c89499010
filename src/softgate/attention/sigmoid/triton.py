"""Sigmoid attention on the Triton kernels: one sweep over the keys, and nothing but the inputs is kept for backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgate import _triton
from softgate._math import masks
from softgate.attention.sigmoid.reference import Bias, resolve_bias, sigmoid_attention_reference


def refuses(
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
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if softcap is not None:
        return "it has no softcap"
    if isinstance(bias, str) and bias == "neg_log_visible":
        return "it has no bias per query"
    for name, tensor in (("bias", bias), ("alibi_slopes", alibi_slopes)):
        if isinstance(tensor, Tensor) and tensor.shape not in ((), (query.shape[-3],)):
            return f"it takes {name} per head only"
    if alibi_slopes is not None and alibi_slopes.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for alibi_slopes"
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
    bias: Bias | None = None,
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.sigmoid_attention`."""
    from softgate._triton import maps
    from softgate._triton.attention import Call, attend

    query, key, value = masks.cast_for_autocast(query, key, value)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)

    def reference(q: Tensor, k: Tensor, v: Tensor, _gate: Any, shift: Any) -> Tensor:
        return sigmoid_attention_reference(
            q, k, v, attn_mask, 0.0, is_causal, factor, bias=shift, alibi_slopes=alibi_slopes, window=window
        )

    shift = resolve_bias(bias, seq_len, key.shape[-2])
    heads = query.shape[-3]
    # Filled on the device: a tensor made of a number on the host is copied, and the call waits for it.
    if not isinstance(shift, Tensor):
        shift = torch.full((heads,), float(shift), dtype=torch.float32, device=query.device)
    call = Call(maps.SIGMOID, factor, *masks.window_bounds(window, is_causal), reference)
    with masks.without_autocast(query):
        return attend(
            query,
            key,
            value,
            call,
            mask=attn_mask,
            head_bias=shift.expand(heads),
            slopes=None if alibi_slopes is None else alibi_slopes.expand(heads),
        )
