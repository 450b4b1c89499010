"""The kernels as a function that autograd knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.attention.native_flash.launch import Inputs, Kept, Plan, backward, forward, row_delta
from softgate.dispatch import is_batched_gradient

#: The same function in plain torch of (query, key, value, head_bias), for derivatives of the gradient.
Reference = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attend(plan: Plan, inputs: Inputs, reference: Reference) -> Tensor:
    """Attention, differentiable in query, key, value and head_bias; double backward goes by way of ``reference``.

    Args:
        plan: what is computed; without a gate.
        inputs: its tensors.
        reference: called for derivatives of the gradient only.

    Returns:
        (B, H, T, Dv), float32.
    """
    differentiable = (inputs.query, inputs.key, inputs.value, inputs.head_bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable):
        output: Tensor = _Attend.apply(plan, reference, *inputs[3:4], *inputs[5:9], *differentiable)
        return output
    return forward(plan, inputs, keep=False)[0]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        reference: Reference,
        mask: Tensor | None,
        slopes: Tensor | None,
        row_scale: Tensor | None,
        counts: Tensor | None,
        offset: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_bias: Tensor | None,
    ) -> Tensor:
        inputs = Inputs(query, key, value, mask, head_bias, slopes, row_scale, counts, offset)
        output_BHTD, kept = forward(plan, inputs, keep=True)
        ctx.save_for_backward(*inputs, output_BHTD, kept.second, *kept.rows)
        ctx.plan, ctx.reference = plan, reference
        return output_BHTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs = Inputs(*tensors[: len(Inputs._fields)])
        output_BHTD, second, *rows = tensors[len(Inputs._fields) :]
        wanted = ctx.needs_input_grad[-4:]
        if torch.is_grad_enabled() or is_batched_gradient(grads[0]):  # the kernel's backward has no derivative
            arguments = (*inputs[:3], inputs.head_bias)
            return *7 * (None,), *differentiable_gradients(ctx.reference, arguments, wanted, grads[0])
        kept = Kept(tuple(rows), second)
        found = backward(ctx.plan, inputs, grads[0], row_delta(ctx.plan, grads[0], output_BHTD, kept), kept)
        bias = None if inputs.head_bias is None else found.head_bias.to(inputs.head_bias.dtype)
        return *7 * (None,), found.query, found.key, found.value, bias
