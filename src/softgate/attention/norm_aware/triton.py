"""Causal norm-aware attention on the Triton kernel of linear attention; the features are elementwise, left to torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate import _triton
from softgate._math import masks
from softgate.attention.norm_aware.features import FeatureMap
from softgate.attention.norm_aware.reference import key_counts, key_keep, map_features, prepare_keys


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *rest: Any,
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if not is_causal or query.shape[-2] != key.shape[-2]:
        return "it is for causal attention of as many queries as keys"
    if options.get("rope") is not None:
        return "it has no rotary positions"
    if options.get("initial_state") is not None or options.get("return_state"):
        return "it takes and returns no state"
    if 2 * query.shape[-1] > _triton.LARGEST_HEAD:
        return f"it takes at most {_triton.LARGEST_HEAD // 2} features per head"
    return _triton.attention_refuses(query, key, value, None, 0.0, backend)


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
    direction: str = "polarity",
    power: float = 3.0,
    tau: float = 0.5,
    alpha: float = 20.0,
    norm_scale: float | None = None,
    eps: float = 1e-6,
    key_padding_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.norm_aware_linear_attention`."""
    from softgate._triton.linear import causal_linear_attention

    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        heads = query.shape[1]
        keep_BS = key_keep(attn_mask, key_padding_mask, key)
        k_BGSD, shrunk_BG11 = prepare_keys(key.float(), keep_BS, scaled=True)
        constants = FeatureMap(direction, power, tau, alpha, 1.0 if norm_scale is None else norm_scale)
        mapped = map_features(query.float(), k_BGSD, value.float(), constants, None)
        floor = eps * key_counts(query, key, keep_BS, True, None, torch.float32)
        if shrunk_BG11 is not None:
            floor = floor * masks.expand_kv_heads(shrunk_BG11, heads) ** power
        floor_BHT = floor.expand(query.shape[0], heads, query.shape[2], 1)[..., 0]

        def reference(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
            weights = (phi_q @ masks.expand_kv_heads(phi_k, heads).mT).tril()
            return weights @ masks.expand_kv_heads(v, heads) / (weights.sum(-1, keepdim=True) + floor_BHT[..., None])

        y_BHTD = causal_linear_attention(
            mapped.phi_q_BHTF,
            mapped.phi_k_BGSF,
            mapped.v_BGSD,
            floor_BHT,
            reference,
            rounded_to=query.dtype,
        )
        return y_BHTD.to(query.dtype)
