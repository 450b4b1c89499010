"""The chunked losses as nodes of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient
from softgate.errors import StateError
from softgate.losses.fused_linear import chunks
from softgate.losses.fused_linear.chunks import Gradients, Problem

__all__: list[str] = []

Build = Callable[[Tensor, Tensor, Tensor | None], Problem]
#: Logits up to so many are held whole where a derivative of the gradient is wanted; beyond, that is refused.
DENSE_ENTRIES = 1 << 20
ONCE = (
    "fused_linear_loss has no {what} for {rows} x {classes} logits, which would have to be held; "
    "backend='reference' holds them and supports every transform"
)


def fused_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, build: Build, dense: Callable[..., Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """``(loss, lse, hit)``; the loss is reduced (algorithm A) or one per row of ``x`` (algorithm B).

    Args:
        x: (M, D).
        weight: (V, D).
        bias: (V,) or None.
        build: makes the problem from these.
        dense: the loss as an ordinary function of them, for second derivatives.
    """
    found: tuple[Tensor, Tensor, Tensor] = _FusedLoss.apply(x, weight, bias, build, dense)
    return found


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, build: Build, dense: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = build(x.detach(), weight.detach(), None if bias is None else bias.detach())
        ctx.save_for_backward(x, weight, bias)
        ctx.build, ctx.dense, ctx.ready = build, dense, None
        needed = ctx.needs_input_grad[:3]
        reduced = p.settings.reduction != "none"
        if reduced and any(needed):
            outcome, ctx.ready = chunks.loss_and_gradients(p, needed)
        else:
            outcome = chunks.losses(p)
        lse, hit = scatter_rows(p, outcome.lse), scatter_rows(p, outcome.hit)
        ctx.mark_non_differentiable(lse, hit)
        loss = outcome.loss.sum() / p.denominator() if reduced else scatter_rows(p, outcome.loss)
        return loss.to(p.wide), lse.to(p.wide), hit

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        grad, needed = grads[0], ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or is_batched_gradient(grad):
            if x.shape[0] * weight.shape[0] > DENSE_ENTRIES:
                what = "second derivative" if torch.is_grad_enabled() else "batched gradient"
                raise StateError(ONCE.format(what=what, rows=x.shape[0], classes=weight.shape[0]))
            return (*differentiable_gradients(ctx.dense, (x, weight, bias), needed, grad), None, None)
        # The gradients of algorithm A are handed over once, so that nobody else owns them and no copy is made; for a
        # second backward pass (retain_graph=True) they are computed anew.
        ready, ctx.ready = ctx.ready, None
        if ready is not None:
            scaled(ready, grad)
        else:
            p = ctx.build(x.detach(), weight.detach(), None if bias is None else bias.detach())
            ready = chunks.gradients(p, needed, row_gradients(p, grad))
        return (*cast(ready, x, weight, bias), None, None)


def scatter_rows(p: Problem, values: Tensor) -> Tensor:
    """Values of the rows that count at their places among all rows, 0 elsewhere."""
    if p.rows is None:
        return values
    return values.new_zeros(p.x.shape[:1]).index_put((p.rows,), values)


def row_gradients(p: Problem, grad: Tensor) -> Tensor:
    """Gradient of each row that counts from that of the result: a number, or one for every row."""
    grad = grad.double()
    if grad.ndim == 0:
        return (grad / p.denominator()).expand(p.labels.shape).contiguous()
    return grad.contiguous() if p.rows is None else grad[p.rows]


def scaled(found: Gradients, grad: Tensor) -> None:
    """Multiply in place; on the CPU the usual factor 1 costs nothing."""
    if grad.is_cpu and float(grad) == 1.0:
        return
    for gradient in (found.x, found.weight, found.bias):
        if gradient is not None:
            gradient.mul_(grad)


def cast(
    found: Gradients, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients in the dtypes of what they belong to."""
    return (
        None if found.x is None else found.x.to(x.dtype),
        None if found.weight is None else found.weight.to(weight.dtype),
        None if found.bias is None or bias is None else found.bias.to(bias.dtype),
    )
