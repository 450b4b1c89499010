"""Gated attention on torch's CPU flash kernel: the gate is applied in place, and only Y' is kept for backward.

Composing scaled_dot_product_attention, sigmoid and a product keeps Y and the gate besides Y' (which the output
projection keeps anyway). Here Y is overwritten by Y' = Y ⊙ g, and backward needs only Y', the log-sum-exp and the
inputs, since for g = σ(G)

    dY = dY' ⊙ g,   Δ = rowsum(dY ⊙ Y) = rowsum(dY' ⊙ Y'),   dG = dY' ⊙ Y' ⊙ (1 - g)

No division stands in dG, so closed gates are safe. torch's backward kernel forms Δ from Y itself; Y'/g serves there,
with g bounded away from 0: where the bound acts, the element's share dY' ⊙ Y' of Δ is below rounding anyway.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.double_backward import differentiable_gradients
from softgate.attention.gated.reference import GateActivation, gate_scores, gated_attention_reference

#: Gates whose gradient can be had from Y' alone; for others the product is left to autograd.
LEAN = ("sigmoid", "ns_sigmoid")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
    """Say why this call cannot run here, None if it can."""
    if backend not in ("auto", "flash_cpu"):
        return f"backend={backend!r} was asked for"
    if query.device.type != "cpu":
        return f"it runs on the CPU only, the tensors are on {query.device}"
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward"):
        return "this version of torch has no flash attention for the CPU"
    if query.dtype not in _DTYPES:
        return f"no kernel for {query.dtype}"
    if query.ndim != 4 or 0 in query.shape or 0 in key.shape:
        return "it needs four dimensions, none of them empty"
    if value.shape[-1] != query.shape[-1]:
        return "value and query have different numbers of features"
    if dropout_p > 0.0:
        return "it has no dropout"
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for attn_mask"
    return None


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
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        top_left = is_causal and attn_mask is None and window is None and query.shape[-2] == key.shape[-2]
        mask = None
        if not top_left:
            mask = masks.additive_mask(masks.resolve_mask(attn_mask, query, key, is_causal, window), query.dtype)
            mask = mask if mask is None or mask.ndim in (2, 4) else mask[None]
        factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        fused = gate is not None and gate_is_logit and gate_activation in LEAN
        y_BHTD, lse_BHT = _FlashGated.apply(
            query, key, value, gate if fused else None, mask, top_left, factor, gate_activation if fused else None
        )
        if gate is not None and not fused:
            y_BHTD = (y_BHTD * gate_scores(gate, gate_activation, gate_is_logit)).to(query.dtype)
        if _hides_nan(lse_BHT, query, key):
            exact_BHTD = gated_attention_reference(
                query,
                key,
                value,
                gate,
                attn_mask,
                is_causal=is_causal,
                scale=scale,
                gate_activation=gate_activation,
                gate_is_logit=gate_is_logit,
                window=window,
            )
            # Only the rows in question, so that a NaN elsewhere never changes the last bit of a healthy row.
            y_BHTD = torch.where((lse_BHT == 0)[..., None], exact_BHTD, y_BHTD)
        return y_BHTD


def _hides_nan(lse_BHT: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether the kernel may have turned a row of NaN into zeros.

    With fewer than 16 keys its row maximum ignores NaN: such a row looks fully masked, output and log-sum-exp are 0
    (torch 2.13). A true fully masked row looks the same, so the inputs decide.
    """
    return bool((lse_BHT == 0).any()) and not bool(query.isfinite().all() and key.isfinite().all())


class _FlashGated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        q_BHTD, k_BGSD, v_BGSD = (_unit_stride(x) for x in (query, key, value))
        y_BHTD, lse_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHTD, k_BGSD, v_BGSD, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        if gate is not None and activation is not None:
            y_BHTD.mul_(gate_scores(gate, activation, True))
        ctx.save_for_backward(query, key, value, gate, mask, y_BHTD, lse_BHT)
        ctx.is_causal, ctx.scale, ctx.activation = is_causal, scale, activation
        ctx.mark_non_differentiable(lse_BHT)
        return y_BHTD, lse_BHT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, mask, gated_BHTD, lse_BHT = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the kernel's backward has no derivative of its own
            return (*_differentiable_backward(ctx, mask, grads[0], query, key, value, gate), *4 * (None,))
        dy_BHTD, y_BHTD, dgate = grads[0], gated_BHTD, None
        if gate is not None:
            dy_BHTD, y_BHTD, dgate = through_gate(grads[0], gated_BHTD, gate, ctx.activation)
        dq_BHTD, dk_BGSD, dv_BGSD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _unit_stride(dy_BHTD),
            *(_unit_stride(x) for x in (query, key, value, y_BHTD)),
            lse_BHT,
            0.0,
            ctx.is_causal,
            attn_mask=mask,
            scale=ctx.scale,
        )
        return dq_BHTD, dk_BGSD, dv_BGSD, dgate, None, None, None, None


def through_gate(dgated: Tensor, gated: Tensor, gate: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """From dY', Y' and the logits: dY, Y and the gradient of the logits, in the dtypes of Y, Y and the logits."""
    sigma = gate_scores(gate, "sigmoid", True)
    g = sigma if activation == "sigmoid" else 0.5 + 0.5 * sigma
    y = (gated / g.clamp_min(torch.finfo(g.dtype).tiny / torch.finfo(g.dtype).eps)).to(gated.dtype)
    # Summed to the gate's shape before the rest, which is cheap then if the gate is headwise.
    if activation == "sigmoid":
        dgate = _product(dgated, gated, g.dtype).sum_to_size(gate.shape)
    else:
        dgate = _product(dgated, y, g.dtype).sum_to_size(gate.shape) * (0.5 * sigma)
    dgate.addcmul_(dgate, sigma, value=-1.0)  # times 1 - sigma
    return (dgated * g).to(gated.dtype), y, dgate.to(gate.dtype)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a * b`` in ``dtype``: 16-bit factors are widened first, so that a sum over features is not rounded."""
    return a.to(dtype) * b


def _differentiable_backward(ctx: Any, mask: Tensor | None, grad: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of q, k, v and gate as functions of all of them, by way of the reference."""

    def reference(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None) -> Tensor:
        return gated_attention_reference(
            query,
            key,
            value,
            gate,
            mask,
            is_causal=ctx.is_causal,
            scale=ctx.scale,
            gate_activation=ctx.activation or "sigmoid",
        )

    with masks.without_autocast(inputs[0]):
        return differentiable_gradients(reference, inputs, ctx.needs_input_grad[:4], grad)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
