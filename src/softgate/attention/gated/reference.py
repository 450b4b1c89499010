"""Plain-torch gated attention: the formula as it stands, for every dtype, device and transform.

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from softgate._math import masks
from softgate.errors import bad_type, bad_value

GateActivation = Literal["sigmoid", "ns_sigmoid", "silu", "identity"] | Callable[[Tensor], Tensor]


def ns_sigmoid(x: Tensor) -> Tensor:
    """Sigmoid squeezed into (0.5, 1): a gate that cannot close ("non-sparse", paper section 4.3)."""
    return 0.5 + 0.5 * torch.sigmoid(x)


def identity(x: Tensor) -> Tensor:
    """The logits themselves."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "ns_sigmoid": ns_sigmoid,
    "silu": F.silu,
    "identity": identity,
}


def activation_function(
    activation: str | Callable[[Tensor], Tensor], name: str = "gate_activation"
) -> Callable[[Tensor], Tensor]:
    """The function called ``activation``, or the callable itself."""
    if callable(activation):
        return activation
    allowed = ", ".join(map(repr, ACTIVATIONS)) + " or a callable"
    if not isinstance(activation, str):
        bad_type(name, activation, allowed)
    if activation not in ACTIVATIONS:
        bad_value(name, activation, allowed)
    return ACTIVATIONS[activation]


def gate_scores(gate: Tensor, activation: str | Callable[[Tensor], Tensor], is_logit: bool) -> Tensor:
    """The factor that multiplies the output: ``activation(gate)``, or ``gate`` itself, at least in float32."""
    gate = gate.to(masks.accumulation_dtype(gate.dtype))
    return activation_function(activation)(gate) if is_logit else gate


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    window: masks.Window | None = None,
) -> Tensor:
    """Y = softmax(q kᵀ·scale + mask) v, (…, H, T, Dv), left in the accumulation dtype."""
    mask = masks.resolve_mask(attn_mask, query, key, is_causal, window)
    weights = masks.masked_softmax(masks.attention_scores(query, key, scale, mask), mask.allowed)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    return weights @ masks.expand_kv_heads(value.to(weights.dtype), query.shape[-3])


def gated_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gate_activation: GateActivation = "sigmoid",
    gate_is_logit: bool = True,
    window: masks.Window | None = None,
    backend: str = "auto",
) -> Tensor:
    """Y' = Y ⊙ act(gate); see :func:`softgate.attention.gated_attention` for the arguments."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        y_BHTD = softmax_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, window)
        if gate is not None:
            y_BHTD = y_BHTD * gate_scores(gate, gate_activation, gate_is_logit)
        return y_BHTD.to(query.dtype)


def gated_attention_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gate_activation: GateActivation = "sigmoid",
    gate_is_logit: bool = True,
    window: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """The same by torch's scaled_dot_product_attention and a multiplication; what ``torch.compile`` traces."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        # torch aligns is_causal at the top left, so it may only be used where both ends coincide.
        aligned, mask = False, None
        if is_causal and attn_mask is None and window is None and query.shape[-2] == key.shape[-2]:
            aligned = True  # not the expression itself: with dynamic shapes that would be symbolic
        else:
            resolved = masks.resolve_mask(attn_mask, query, key, is_causal, window)
            mask = resolved.allowed if resolved.bias is None else masks.additive_mask(resolved, query.dtype)
        y_BHTD = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p, aligned, scale=scale, enable_gqa=enable_gqa
        )
        if gate is None:
            return y_BHTD
        return (y_BHTD * gate_scores(gate, gate_activation, gate_is_logit)).to(query.dtype)
