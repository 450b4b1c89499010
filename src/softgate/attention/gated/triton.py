"""Gated attention on the Triton kernels: the gate is applied before the output leaves the chip."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from softgate import _triton, dispatch
from softgate._math import masks
from softgate.attention.gated.reference import GateActivation, gated_attention_reference


def refuses(
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
) -> str | None:
    """Say why this call cannot (or should not) run here, None if it can."""
    if "triton" not in (backend, dispatch.mode()) and query.device.type == "cuda":
        return "torch's own attention kernels are the first choice on a GPU; ask for backend='triton'"
    if gate is not None and not (gate_is_logit and gate_activation == "sigmoid"):
        return "the kernel knows logits of a sigmoid gate only"
    return _triton.attention_refuses(query, key, value, attn_mask, dropout_p, backend)


def run(
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
    """Arguments and result of :func:`softgate.attention.gated_attention`."""
    from softgate._triton import maps
    from softgate._triton.attention import Call, attend

    query, key, value = masks.cast_for_autocast(query, key, value)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)

    def reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, _bias: Any) -> Tensor:
        return gated_attention_reference(q, k, v, g, attn_mask, is_causal=is_causal, scale=factor, window=window)

    left, right = masks.window_bounds(window, is_causal)
    call = Call(maps.SOFTMAX, factor, left, right, reference)
    with masks.without_autocast(query):
        return attend(query, key, value, call, gate=gate, mask=attn_mask)
