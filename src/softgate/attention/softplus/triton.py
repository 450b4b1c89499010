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
        narrow = stays_narrow(query, normalize_qk)
        count = visible_keys_in_tiles(Tiles.of(query, key, attn_mask, is_causal, window), query[:0, :0, :0].float())
        factor = score_factor(count, query.shape[-1], scale, length_scale, normalize_qk)

        def reference(q: Tensor, k: Tensor, v: Tensor, _gate: Any, _bias: Any) -> Tensor:
            mask = masks.resolve_mask(attn_mask, q, k, is_causal, window)
            if narrow:
                q, k = prepared(q.float(), k.float(), factor, normalize_qk)
            weights = first_stage(masks.attention_scores(q, k, 1.0, mask), mask.allowed, phi)
            if reweight_power is not None:
                weights = second_stage(weights, count, reweight_power, offset, offset_min_keys)
            return (weights @ masks.expand_kv_heads(v.float(), q.shape[-3])).to(v.dtype)

        if not narrow:
            query, key, value = *prepared(query.float(), key.float(), factor, normalize_qk), value.float()
        rows = of_rows(count, query)
        call = Call(
            maps.LSSA if reweight_power is None else maps.LSSAR,
            1.0,
            *masks.window_bounds(window, is_causal),
            reference,
            power=1.0 if reweight_power is None else reweight_power,
            directions=narrow and normalize_qk,
        )
        out = attend(
            query,
            key,
            value,
            call,
            mask=attn_mask,
            counts=rows,
            offsets=level(rows, offset, offset_min_keys),
            row_factor=of_rows(factor, query) if narrow else None,
        )
        return out.to(result_dtype)


def stays_narrow(query: Tensor, normalize_qk: bool) -> bool:
    """Whether queries and keys stay in 16 bits, so that their lengths divide the scores.

    Where nothing bounds the scores, weights before their division may be more than float16 holds.
    """
    return query.dtype is torch.bfloat16 or (query.dtype is torch.float16 and normalize_qk)


def of_rows(x: Tensor | float, query: Tensor) -> Tensor:
    """A number, or one for each query (…, T, 1), as a float32 tensor (B, H, T)."""
    if not isinstance(x, Tensor):
        return torch.full(query.shape[:-1], x, dtype=torch.float32, device=query.device)
    return x[..., 0].expand(query.shape[:-1]).contiguous()


def prepared(query: Tensor, key: Tensor, factor: Tensor | float, normalize_qk: bool) -> tuple[Tensor, Tensor]:
    """Queries times the factor of their scores, and keys, both in float32 and of length 1 if ``normalize_qk``."""
    if normalize_qk:
        query, key = unit_vectors(query), unit_vectors(key)
    return query * factor, key
