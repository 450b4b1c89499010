"""Plain-torch LSSA and LSSAR: the formulas as they stand, for every dtype, device and transform.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features. N is the number of keys a query sees after all masks, (…, T, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate._math import masks

Phi = Literal["softplus", "sigmoid", "relu", "exp"]
LengthScale = Literal["log", "none"]

#: A query or key without an entry above this has no direction: it counts as the zero vector.
SMALLEST = 1e-12


def softplus(z: Tensor) -> Tensor:
    """``ln(1 + e^z)``; torch's default takes z itself from 20 on, which float64 would notice."""
    return F.softplus(z, threshold=40.0)


#: Positive maps taken entry by entry. ``"exp"`` is not among them: it needs the largest score of the row.
POSITIVE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}


def in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """The tensors in their common dtype, and the dtype of the result: autocast's inside autocast.

    Autocast rounds the result only. Rounding float32 queries and keys first, as a plain matrix product would, is
    amplified by the power: 2⁻⁹ in the scores is 10 % in a weight for p = 15.
    """
    low = masks.autocast_dtype(query)
    if low is None:
        return query, key, value, query.dtype
    common = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    tensors = query.to(common), key.to(common), value.to(common)
    return *tensors, common if common is torch.float64 else low


def unit_vectors(x: Tensor) -> Tensor:
    """``x / ‖x‖₂`` along the last dimension; the zero vector stays zero and gets no gradient.

    The vector is first divided by its largest entry, so that no square overflows or underflows. A constant factor
    does not change a direction, so that entry needs no derivative.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    short = largest <= SMALLEST
    scaled = (x / largest.masked_fill(short, 1.0)).masked_fill(short, 1.0)
    return (scaled / scaled.square().sum(-1, keepdim=True).sqrt()).masked_fill(short, 0.0)


def visible_keys(allowed: Tensor | None, like: Tensor, keys: int) -> Tensor:
    """N: how many keys each query may attend to, (…, T, 1) or (1, 1), in the dtype of ``like``."""
    if allowed is None:
        return like.new_full((1, 1), keys)
    return allowed.expand(*allowed.shape[:-1], keys).sum(-1, keepdim=True).to(like.dtype)


def score_factor(
    count: Tensor, features: int, scale: float | None, length_scale: LengthScale, normalize_qk: bool
) -> Tensor | float:
    """What multiplies the similarities of a row: c = ln D · ln N, or what ``scale`` and ``length_scale`` say."""
    if scale is None:
        scale = math.log(features) if normalize_qk else 1.0 / math.sqrt(features)
    return scale * count.clamp(min=1.0).log() if length_scale == "log" else scale


def first_stage(scores: Tensor, allowed: Tensor | None, phi: Phi) -> Tensor:
    """A = φ(z) / Σ φ(z) over the allowed keys; rows without any, or where φ is 0 throughout, are 0."""
    if phi == "exp":
        return masks.masked_softmax(scores, allowed)
    f = masks.masked_weights(POSITIVE_MAPS[phi](scores), allowed)
    total = f.sum(-1, keepdim=True)
    return f / total.masked_fill(total == 0.0, 1.0)


def tie_level(dtype: torch.dtype) -> float:
    """A row whose largest u is not above this is tied up to rounding: there is nothing to amplify."""
    return 16 * torch.finfo(dtype).eps


def level(count: Tensor, offset: float, offset_min_keys: int) -> Tensor:
    """o: what is subtracted from N·A, ``offset`` for queries that see more than ``offset_min_keys``, 0 for others."""
    return (count > offset_min_keys).to(count.dtype) * offset


def second_stage(weights: Tensor, count: Tensor, power: float, offset: float, offset_min_keys: int) -> Tensor:
    """A' = u^p / Σ u^p with u = relu(N·A - o); where u is 0 throughout, A itself.

    u is divided by its largest entry before the power, which would underflow otherwise (0.25¹⁵ is 1e-9). The factor
    cancels in A', so it needs no derivative.
    """
    if weights.shape[-1] == 0:
        return weights
    above = count * weights - level(count, offset, offset_min_keys)
    largest = above.detach().amax(-1, keepdim=True)
    tied = largest <= tie_level(weights.dtype)
    t = above / largest.masked_fill(tied, 1.0)
    dead = t <= 0.0  # false for NaN, which so reaches its row
    # The inner 1 keeps the derivative finite for p < 2, where that of t^(p-1) is not.
    w = (t.masked_fill(dead, 1.0) ** power).masked_fill(dead, 0.0)
    return torch.where(tied, weights, w / w.sum(-1, keepdim=True).masked_fill(tied, 1.0))


def lssa_weights_reference(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    reweight_power: float | None = 15,
    offset: float = 1.0,
    offset_min_keys: int = 3,
    length_scale: LengthScale = "log",
    normalize_qk: bool = True,
    phi: Phi = "softplus",
    window: int | None = None,
) -> Tensor:
    """The weights (…, H, T, S) in the accumulation dtype; see :func:`softgate.attention.lssa_weights`."""
    dtype = masks.accumulation_dtype(query.dtype)
    q_BHTD, k_BGSD = query.to(dtype), key.to(dtype)
    if normalize_qk:
        q_BHTD, k_BGSD = unit_vectors(q_BHTD), unit_vectors(k_BGSD)
    mask = masks.resolve_mask(attn_mask, query, key, is_causal, window)
    count = visible_keys(mask.allowed, q_BHTD, key.shape[-2])
    q_BHTD = q_BHTD * score_factor(count, query.shape[-1], scale, length_scale, normalize_qk)
    z_BHTS = masks.attention_scores(q_BHTD, k_BGSD, 1.0, mask)
    a_BHTS = first_stage(z_BHTS, mask.allowed, phi)
    if reweight_power is None:
        return a_BHTS
    return second_stage(a_BHTS, count, reweight_power, offset, offset_min_keys)


def softplus_attention_reference(
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
    """O = A' v; see :func:`softgate.attention.softplus_attention` for the arguments."""
    query, key, value, result_dtype = in_one_dtype(query, key, value)
    with masks.without_autocast(query):
        weights = lssa_weights_reference(
            query,
            key,
            attn_mask,
            is_causal,
            scale,
            reweight_power=reweight_power,
            offset=offset,
            offset_min_keys=offset_min_keys,
            length_scale=length_scale,
            normalize_qk=normalize_qk,
            phi=phi,
            window=window,
        )
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        return (weights @ masks.expand_kv_heads(value.to(weights.dtype), query.shape[-3])).to(result_dtype)
