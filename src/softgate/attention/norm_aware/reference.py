"""Plain-torch norm-aware linear attention with all T x S weights: the formula as it stands.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features, F = 2D mapped features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from softgate._math import masks
from softgate.attention.norm_aware.features import FeatureMap, key_features, query_features
from softgate.attention.norm_aware.rotation import Rope, turn
from softgate.attention.norm_aware.state import LinearAttentionState

#: Keys up to this size are cubed as they are; larger ones are scaled down first, lest the sums of cubes overflow.
LARGEST_KEY = 2.0**20

Result = Tensor | tuple[Tensor, LinearAttentionState]


class Mapped(NamedTuple):
    """A call after the feature maps, in the accumulation dtype; the turned features are rotated to their positions."""

    phi_q_BHTF: Tensor
    phi_k_BGSF: Tensor
    turned_q_BHTF: Tensor
    turned_k_BGSF: Tensor
    v_BGSD: Tensor


def norm_aware_reference(
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
    rope: Rope | None = None,
    key_padding_mask: Tensor | None = None,
    chunk_size: int = 64,
    initial_state: LinearAttentionState | None = None,
    return_state: bool = False,
    backend: str = "auto",
    mix: Callable[[Mapped, bool, int], tuple[Tensor, Tensor]] | None = None,
) -> Result:
    """See :func:`softgate.attention.norm_aware_linear_attention`; ``mix`` replaces :func:`all_weights`."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        dtype, heads = masks.accumulation_dtype(query.dtype), query.shape[-3]
        constants = FeatureMap(direction, power, tau, alpha, 1.0 if norm_scale is None else norm_scale)
        keep_BS = key_keep(attn_mask, key_padding_mask, key)
        k_BGSD, shrunk_BG11 = prepare_keys(key.to(dtype), keep_BS, scaled=initial_state is None and not return_state)
        mapped = map_features(query.to(dtype), k_BGSD, value.to(dtype), constants, rope)
        mixed_BHTD, sums_BHT1 = (mix or all_weights)(mapped, is_causal, chunk_size)
        if initial_state is not None:
            past = (initial_state.kv.to(dtype), initial_state.key_sum.to(dtype).unsqueeze(-1))
            past_BHFD, past_BHF1 = (masks.expand_kv_heads(t, heads) for t in past)
            mixed_BHTD = mixed_BHTD + mapped.turned_q_BHTF @ past_BHFD
            sums_BHT1 = sums_BHT1 + mapped.phi_q_BHTF @ past_BHF1
        floor = eps * key_counts(query, key, keep_BS, is_causal, initial_state, dtype)
        if shrunk_BG11 is not None:
            floor = floor * masks.expand_kv_heads(shrunk_BG11, heads) ** power
        y_BHTD = (mixed_BHTD / (sums_BHT1 + floor)).to(query.dtype)
        if not return_state:
            return y_BHTD
        kv_BGFD, z_BGF = mapped.turned_k_BGSF.mT @ mapped.v_BGSD, mapped.phi_k_BGSF.sum(-2)
        state = LinearAttentionState(kv_BGFD, z_BGF, tokens_kept(key, keep_BS, dtype))
        return y_BHTD, state if initial_state is None else add_states(initial_state, state)


def map_features(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, constants: FeatureMap, rope: Rope | None) -> Mapped:
    """The features of queries and keys, plain and turned to their positions, beside the values."""
    phi_q_BHTF, phi_k_BGSF = query_features(q_BHTD, constants), key_features(k_BGSD, constants)
    if rope is None:
        return Mapped(phi_q_BHTF, phi_k_BGSF, phi_q_BHTF, phi_k_BGSF, v_BGSD)
    cos, sin = (table.to(q_BHTD.dtype) for table in rope)
    first = k_BGSD.shape[-2] - q_BHTD.shape[-2]  # the last query stands at the last key
    turned_q_BHTF = turn(phi_q_BHTF, cos[first:], sin[first:])
    return Mapped(phi_q_BHTF, phi_k_BGSF, turned_q_BHTF, turn(phi_k_BGSF, cos, sin), v_BGSD)


def all_weights(mapped: Mapped, is_causal: bool, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Numerators (…, H, T, Dv) and sums of weights (…, H, T, 1), by way of all T x S weights."""
    q_BHTF, heads = mapped.turned_q_BHTF, mapped.turned_q_BHTF.shape[-3]
    queries, keys = q_BHTF.shape[-2], mapped.v_BGSD.shape[-2]
    seen_TS = masks.structural_mask(queries, keys, is_causal=is_causal, window=None, device=q_BHTF.device)

    def weights(phi_q_BHTF: Tensor, phi_k_BGSF: Tensor) -> Tensor:
        return masks.masked_weights(phi_q_BHTF @ masks.expand_kv_heads(phi_k_BGSF, heads).mT, seen_TS)

    weights_BHTS = weights(q_BHTF, mapped.turned_k_BGSF)
    mixed_BHTD = weights_BHTS @ masks.expand_kv_heads(mapped.v_BGSD, heads)
    if mapped.turned_k_BGSF is not mapped.phi_k_BGSF:
        weights_BHTS = weights(mapped.phi_q_BHTF, mapped.phi_k_BGSF)
    return mixed_BHTD, weights_BHTS.sum(-1, keepdim=True)


def key_keep(attn_mask: Tensor | None, key_padding_mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Both masks as one bool (…, S), True = real key; None if every key is."""
    if attn_mask is not None:
        lead = (1,) * (key.ndim - attn_mask.ndim)
        attn_mask = attn_mask.reshape(*lead, *attn_mask.shape)[..., 0, 0, :]
        attn_mask = attn_mask.expand(*key.shape[:-3], key.shape[-2])
    if key_padding_mask is None or attn_mask is None:
        return attn_mask if key_padding_mask is None else key_padding_mask
    return attn_mask & key_padding_mask


def prepare_keys(k_BGSD: Tensor, keep_BS: Tensor | None, *, scaled: bool) -> tuple[Tensor, Tensor | None]:
    """Keys with 0 in place of padded ones, made small enough to be cubed, and the factor (…, G, 1, 1) that did it.

    The factor is a power of two per head, 1 for keys up to :data:`LARGEST_KEY`. It cancels in the result if eps is
    multiplied by its own power as well.
    """
    if keep_BS is not None:
        k_BGSD = k_BGSD.masked_fill(~keep_BS[..., None, :, None], 0.0)
    if not scaled or k_BGSD.shape[-2] == 0:
        return k_BGSD, None
    factor_BG11 = shrink_factor(k_BGSD)
    return k_BGSD * factor_BG11, factor_BG11


def shrink_factor(k_BGSD: Tensor) -> Tensor:
    """See :func:`prepare_keys`; a constant for derivatives."""
    k_BGSD = k_BGSD.detach()
    largest = torch.maximum(k_BGSD.amax((-2, -1), keepdim=True), -k_BGSD.amin((-2, -1), keepdim=True))
    largest = largest.to(masks.accumulation_dtype(k_BGSD.dtype))
    return torch.exp2(-torch.ceil(torch.log2(largest / LARGEST_KEY)).clamp_min(0.0))


def key_counts(
    query: Tensor,
    key: Tensor,
    keep_BS: Tensor | None,
    is_causal: bool,
    initial_state: LinearAttentionState | None,
    dtype: torch.dtype,
) -> Tensor:
    """How many keys every query sees, at least 1; broadcastable to (…, H, T, 1)."""
    queries, keys = query.shape[-2], key.shape[-2]
    ends = torch.arange(keys - queries + 1, keys + 1, device=key.device).clamp_min(0)
    if not is_causal:
        ends = torch.full_like(ends, keys)
    if keep_BS is None:
        counts = ends.to(dtype)[:, None]
    else:
        totals_BS = torch.nn.functional.pad(keep_BS.to(dtype).cumsum(-1), (1, 0))
        counts = totals_BS[..., ends][..., None, :, None]
    if initial_state is not None:
        counts = counts + initial_state.tokens.to(dtype)[..., None, None, None]
    return counts.clamp_min(1.0)


def tokens_kept(key: Tensor, keep_BS: Tensor | None, dtype: torch.dtype) -> Tensor:
    """How many keys each batch entry has, (…), as numbers of ``dtype``."""
    if keep_BS is None:
        return torch.full(key.shape[:-3], float(key.shape[-2]), dtype=dtype, device=key.device)
    return keep_BS.to(dtype).sum(-1)


def add_states(a: LinearAttentionState, b: LinearAttentionState) -> LinearAttentionState:
    """The state after the tokens of both."""
    return LinearAttentionState(a.kv + b.kv, a.key_sum + b.key_sum, a.tokens + b.tokens)
