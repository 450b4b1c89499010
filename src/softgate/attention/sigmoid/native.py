"""Sigmoid attention by the C++ kernels: no maximum, no sum, tiles just add up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention import native_flash
from softgate.attention.native_flash import Inputs, Plan
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
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if softcap is not None:
        return "it has no softcap"
    if isinstance(bias, str) and bias == "neg_log_visible":
        return "it has no bias that counts the visible keys"
    if alibi_slopes is not None and alibi_slopes.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for alibi_slopes"
    return native_flash.refusal(query, key, value, attn_mask, dropout_p, backend)


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
    shift = resolve_bias(bias, seq_len, key.shape[-2])
    assert not isinstance(shift, str)  # refused
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    flat = native_flash.flat
    inputs = Inputs(
        flat(query),
        flat(key),
        flat(value),
        native_flash.flat_mask(attn_mask, query, key.shape[-2]),
        native_flash.flat_heads(shift, query),
        None if alibi_slopes is None else native_flash.flat_heads(alibi_slopes.detach(), query),
    )

    def reference(query: Tensor, key: Tensor, value: Tensor, head_bias: Tensor | None) -> Tensor:
        return sigmoid_attention_reference(
            query,
            key,
            value,
            inputs.mask,
            is_causal=is_causal,
            scale=factor,
            bias=head_bias,
            alibi_slopes=inputs.slopes,
            window=window,
        )

    plan = Plan("sigmoid", factor, is_causal, window)
    return native_flash.attend(plan, inputs, reference).reshape(*query.shape[:-1], value.shape[-1])
