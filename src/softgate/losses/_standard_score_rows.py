"""Standard scores of the targets in blocks of rows, which on a CPU stay in the cache.

Only the logits and two numbers a row are kept for the backward pass, where the plain form keeps several tensors of
their size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.losses._row_kernel import _blocks, _view, needs_graph, rows_of, scratch_for

__all__: list[str] = []

#: Variances between which squares have all their digits; other rows, such as those of equal logits, go to ``plain``.
_LOW, _HIGH = 1e-30, 1e30
#: ``(x, place, eps) -> scores``: the same in ordinary differentiable operations, without the axis of the classes.
PlainScores = Callable[[Tensor, Tensor, float], Tensor]


class StandardScores(torch.autograd.Function):
    """``(o_y - mean) / (deviation + eps)``; ``x`` (N, C) or (N, C, m), ``index`` (N, 1[, m])."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, eps: float, plain: PlainScores) -> Tensor:
        """Scores of the rows."""
        first, second = scratch_for(x), scratch_for(x)
        mean, variance = (first.new_empty(index.shape) for _ in range(2))
        pivot = x.new_empty(index.shape)
        for part in _blocks(x):
            block, t = x[part], _view(first, x[part])
            torch.amax(block, 1, keepdim=True, out=pivot[part])
            torch.mean(torch.sub(block, pivot[part], out=t), 1, keepdim=True, out=mean[part])
            torch.mul(t.sub_(mean[part]), t, out=_view(second, block))
            torch.mean(_view(second, block), 1, keepdim=True, out=variance[part])
        own = x.gather(1, index).to(mean.dtype) - pivot.to(mean.dtype) - mean
        bad = ~((variance > _LOW) & (variance < _HIGH)).squeeze(1)  # also true for NaN
        sigma = variance.sqrt_()
        scores = (own / (sigma + eps)).squeeze(1)
        if bool(bad.any()):
            scores[bad] = plain(rows_of(x, bad).to(mean.dtype), index.squeeze(1)[bad].unsqueeze(1), eps)
        else:
            bad = bad.new_empty(0)
        ctx.save_for_backward(x, index, bad, pivot, mean, sigma, own)
        ctx.options = eps, plain
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the logits: ``d z / d o_j = ([j = y] - 1/C - z c_j / (C deviation)) / (deviation + eps)``."""
        x, index, bad, pivot, mean, sigma, own = ctx.saved_tensors
        eps, plain = ctx.options
        if needs_graph(x, grads[0]):
            return _by_graph(x, index, grads[0], eps, plain), None, None, None
        at_target = grads[0].unsqueeze(1) / (sigma + eps)
        share = at_target / x.shape[1]
        factor = -share * (own / (sigma + eps)) / sigma
        constant = -share - factor * mean
        out = torch.empty_like(x)
        wide = scratch_for(x) if x.dtype != mean.dtype else None
        for part in _blocks(x):
            v = out[part] if wide is None else _view(wide, x[part])
            torch.sub(x[part], pivot[part], out=v).mul_(factor[part]).add_(constant[part])
            v.scatter_add_(1, index[part], at_target[part])
            if wide is not None:
                out[part].copy_(v)
        if bad.numel():
            upstream = grads[0][bad]
            rows = rows_of(x, bad).requires_grad_()
            exact = _by_graph(rows, index.squeeze(1)[bad].unsqueeze(1), upstream, eps, plain)
            # an ignored row gets no gradient, whatever it holds
            exact = exact.masked_fill((upstream == 0).unsqueeze(1), 0.0)
            (out if x.ndim == 2 else out.movedim(1, -1))[bad] = exact
        return out, None, None, None


def _by_graph(x: Tensor, index: Tensor, grad: Tensor, eps: float, plain: PlainScores) -> Tensor:
    """The gradient from ordinary operations."""

    def scores(logits: Tensor) -> Tensor:
        return plain(logits.to(grad.dtype), index, eps)

    found = differentiable_gradients(scores, (x,), (True,), grad)[0]
    assert found is not None
    return found
