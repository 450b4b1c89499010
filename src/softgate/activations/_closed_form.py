"""Activations with one parameter and derivatives in closed form: the gradients keep ``x`` and nothing of its size."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from softgate.dispatch import is_batched_gradient, transform_reason

__all__: list[str] = []

#: Gradients of the input and of the parameter, None for one that is not needed.
Pair = tuple[Tensor | None, Tensor | None]


class Passes(Protocol):
    """The two passes over the data, by whatever computes them."""

    def forward(self, x: Tensor, parameter: Tensor) -> Tensor:
        """The result, of the shape and dtype of ``x``."""

    def backward(self, x: Tensor, parameter: Tensor, grad: Tensor, need_x: bool, need_parameter: bool) -> Pair:
        """Gradients from that of the result."""

    def gradients(self, x: Tensor, parameter: Tensor, grad: Tensor, need_x: bool, need_parameter: bool) -> Pair:
        """The same by operations that can be differentiated again."""


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, passes: Passes) -> Tensor:
        ctx.save_for_backward(x, parameter)
        ctx.passes = passes
        return passes.forward(x, parameter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, parameter), (grad,) = ctx.saved_tensors, grads
        again = torch.is_grad_enabled() or transform_reason(x, grad) is not None or is_batched_gradient(grad)
        run = ctx.passes.gradients if again else ctx.passes.backward
        return *run(x, parameter, grad, *ctx.needs_input_grad[:2]), None


def run(passes: Passes, x: Tensor, parameter: Tensor) -> Tensor:
    """The activation by ``passes``, with a graph where one is wanted."""
    if torch.is_grad_enabled() and (x.requires_grad or parameter.requires_grad):
        return _ClosedForm.apply(x, parameter, passes)  # type: ignore[no-any-return,no-untyped-call]
    return passes.forward(x, parameter)
