"""Gated attention by the C++ kernels: the gate is applied as a row is written, and only Y' is kept for backward.

Gradients from Y' as in :mod:`softgate.attention.gated.flash_cpu`; NaN needs no second look here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.attention import native_flash
from softgate.attention.gated.flash_cpu import LEAN, through_gate
from softgate.attention.gated.reference import GateActivation, gate_scores, gated_attention_reference
from softgate.attention.native_flash.launch import Inputs, Kept, Plan, backward, forward
from softgate.dispatch import is_batched_gradient


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
    return native_flash.refusal(query, key, value, attn_mask, dropout_p, backend)


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
    fused = gate is not None and gate_is_logit and gate_activation in LEAN
    plan = Plan(
        weights="softmax",
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        is_causal=is_causal,
        window=window,
        gate=str(gate_activation) if fused else None,
    )
    mask = native_flash.flat_mask(attn_mask, query, key.shape[-2])
    flat = native_flash.flat
    gate_BHTD = flat(gate) if fused and gate is not None else None
    y_BHTD = _attend(plan, mask, flat(query), flat(key), flat(value), gate_BHTD)
    y_BHTD = y_BHTD.reshape(*query.shape[:-1], value.shape[-1])
    if gate is not None and not fused:
        y_BHTD = y_BHTD * gate_scores(gate, gate_activation, gate_is_logit)
    return y_BHTD


def _attend(plan: Plan, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None) -> Tensor:
    tensors = (query, key, value, gate)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        output: Tensor = _NativeGated.apply(plan, mask, *tensors)
        return output
    return forward(plan, Inputs(query, key, value, mask, gate=gate), keep=False)[0]


class _NativeGated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: Plan, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None
    ) -> Tensor:
        y_BHTD, kept = forward(plan, Inputs(query, key, value, mask, gate=gate), keep=True)
        ctx.save_for_backward(mask, query, key, value, gate, y_BHTD, *kept.rows)
        ctx.plan = plan
        return y_BHTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mask, query, key, value, gate, y_BHTD, *rows = ctx.saved_tensors
        plan: Plan = ctx.plan

        def reference(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None) -> Tensor:
            return gated_attention_reference(
                query,
                key,
                value,
                gate,
                mask,
                is_causal=plan.is_causal,
                scale=plan.scale,
                gate_activation=plan.gate or "sigmoid",  # type: ignore[arg-type]
                window=plan.window,
            )

        if torch.is_grad_enabled() or is_batched_gradient(grads[0]):  # the kernel's backward has no derivative
            wanted = ctx.needs_input_grad[2:]
            return None, None, *differentiable_gradients(reference, (query, key, value, gate), wanted, grads[0])
        dy_BHTD, dgate = grads[0], None
        if gate is not None and plan.gate is not None:
            dy_BHTD, _, dgate = through_gate(grads[0], y_BHTD, gate, plan.gate)
        delta_BHT = (grads[0] * y_BHTD).sum(-1)  # equals the sum of dY ⊙ Y
        found = backward(plan, Inputs(query, key, value, mask), dy_BHTD, delta_BHT, Kept(tuple(rows), None))
        return None, None, found.query, found.key, found.value, dgate
