"""Clipped softmax attention by the C++ kernels; the formulas are those of :mod:`softgate.attention.clipped.tiled`."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from softgate._math.clipping import resolve_gamma
from softgate.attention import native_flash
from softgate.attention.clipped.reference import clipped_softmax_attention_reference
from softgate.attention.native_flash import Inputs, Plan


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
    """Say why this call cannot or should not run here, None if it does."""
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
    gamma: float | None = None,
    alpha: float | None = None,
    max_seq_len: int | None = None,
    zeta: float = 1.0,
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.clipped_softmax_attention`."""
    plan = Plan(
        "clipped",
        1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        is_causal,
        window,
        gamma=resolve_gamma(gamma, alpha, max_seq_len),
        zeta=float(zeta),
    )
    flat = native_flash.flat
    mask = native_flash.flat_mask(attn_mask, query, key.shape[-2])

    def reference(query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
        return clipped_softmax_attention_reference(
            query,
            key,
            value,
            mask,
            is_causal=is_causal,
            scale=plan.scale,
            gamma=plan.gamma,
            zeta=plan.zeta,
            window=window,
        )

    output = native_flash.attend(plan, Inputs(flat(query), flat(key), flat(value), mask), reference)
    return output.reshape(*query.shape[:-1], value.shape[-1])
