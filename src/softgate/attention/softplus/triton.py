"""Softplus attention on the Triton kernels; the normalisation of queries and keys is O(T·d) and left to torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate import _triton
from softgate._math import masks
from softgate._math.tiles import Tiles
from softgate.attention.softplus.reference import (
    LengthScale,
    Phi,
    first_stage,
    in_one_dtype,
    level,
    score_factor,
    second_stage,
    unit_vectors,
)
from softgate.attention.softplus.tiled import visible_keys_in_tiles


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *positional: Any,
    phi: Phi = "softplus",
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if phi != "softplus":
        return "it knows phi='softplus' only"
    if attn_mask is not None and attn_mask.is_floating_point() and attn_mask.itemsize == 8:
        return "it takes no float64 mask"
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
    reweight_power: float | None = 15,
    offset: float = 1.0,
    offset_min_keys: int = 3,
    length_scale: LengthScale = "log",
    normalize_qk: bool = True,
    phi: Phi = "softplus",
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.softplus_attention`."""
    from softgate._triton import maps
    from softgate._triton.attention import Call, attend

    query, key, value, result_dtype = in_one_dtype(query, key, value)
    with masks.without_autocast(query):
        q_BHTD, k_BGSD = query.float(), key.float()
        if normalize_qk:
            q_BHTD, k_BGSD = unit_vectors(q_BHTD), unit_vectors(k_BGSD)
        count = visible_keys_in_tiles(Tiles.of(query, key, attn_mask, is_causal, window), q_BHTD)
        q_BHTD = q_BHTD * score_factor(count, query.shape[-1], scale, length_scale, normalize_qk)

        def reference(q: Tensor, k: Tensor, v: Tensor, _gate: Any, _bias: Any) -> Tensor:
            mask = masks.resolve_mask(attn_mask, q, k, is_causal, window)
            weights = first_stage(masks.attention_scores(q, k, 1.0, mask), mask.allowed, phi)
            if reweight_power is not None:
                weights = second_stage(weights, count, reweight_power, offset, offset_min_keys)
            return weights @ masks.expand_kv_heads(v, q.shape[-3])

        rows = count[..., 0].expand(query.shape[:-1]).contiguous()
        call = Call(
            maps.LSSA if reweight_power is None else maps.LSSAR,
            1.0,
            *masks.window_bounds(window, is_causal),
            reference,
            power=1.0 if reweight_power is None else reweight_power,
        )
        out = attend(
            q_BHTD,
            k_BGSD,
            value.to(torch.float32),
            call,
            mask=attn_mask,
            counts=rows,
            offsets=level(rows, offset, offset_min_keys),
        )
        return out.to(result_dtype)
