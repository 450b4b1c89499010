"""Losses of tokens summed over each row, with the derivative written down: one array of the size of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat
from typing import Any, Protocol

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient, transform_reason

__all__: list[str] = []

#: Entries worked on at a time on the CPU: with what is computed on the way they stay in the cache.
_BLOCK = 1 << 17
#: ``(B, 1)`` or ``(B, T)`` each. A loss is a multiple of the first; the others are finite.
Constants = Sequence[Tensor]


class Terms(Protocol):
    """The loss of a token as a function of its log-ratio."""

    #: Whether the loss depends on log pi through the log-ratio, so that it has no gradient where that is cut.
    through_ratio: bool

    def losses(self, log_ratio: Tensor, logp: Tensor, constants: Constants) -> Tensor:
        """Losses of all tokens, from ordinary operations."""

    def fill(self, work: Tensor, logp: Tensor, slope: Tensor, spare: Tensor, constants: Constants) -> Tensor:
        """Losses and, in ``slope``, their derivatives by ``logp``; ``work`` holds log-ratios and may be overwritten.

        ``spare`` is memory of the same size. The losses may stand in it or in ``work``.
        """


def row_sums(
    terms: Terms, limit: float, logp: Tensor, old_logp: Tensor, mask: Tensor, *constants: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of losses over the tokens that count, and how many those are, both ``(B,)`` in the dtype of the constants.

    Args:
        terms: the losses.
        limit: log-ratios are cut there.
        logp: ``(B, T)``, gets the gradient.
        old_logp: ``(B, T)``, a constant.
        mask: ``(B, T)``, nonzero where a token counts; what else stands there does not matter.
        *constants: of the terms.
    """
    wanted = torch.is_grad_enabled() and logp.requires_grad
    found: tuple[Tensor, Tensor] = _RowSums.apply(terms, limit, wanted, logp, old_logp, mask, *constants)
    return found


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, terms: Terms, limit: float, wanted: bool, logp: Tensor, old_logp: Tensor, mask: Tensor,
        *constants: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        sums, lengths, ctx.slope = _sweep(terms, limit, logp, old_logp, mask, constants, wanted)
        ctx.save_for_backward(logp, old_logp, mask, *constants)
        ctx.terms, ctx.limit = terms, limit
        ctx.mark_non_differentiable(lengths)
        return sums, lengths

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logp, old_logp, mask, *constants = ctx.saved_tensors
        grad, nothing = grads[0], (None,) * (2 + len(constants))
        if torch.is_grad_enabled() or transform_reason(logp, grad) is not None or is_batched_gradient(grad):

            def plain(logp: Tensor) -> Tensor:
                return _plain_sums(ctx.terms, ctx.limit, logp, old_logp, mask, constants)

            return None, None, None, *differentiable_gradients(plain, [logp], [True], grad), *nothing
        # Handed over once, so that it can become the gradient in place; for a second pass it is computed anew.
        slope, ctx.slope = ctx.slope, None
        if slope is None:
            slope = _sweep(ctx.terms, ctx.limit, logp, old_logp, mask, constants, True)[2]
        return None, None, None, slope.mul_(grad.unsqueeze(-1)).to(logp.dtype), *nothing


def _plain_sums(
    terms: Terms, limit: float, logp: Tensor, old_logp: Tensor, mask: Tensor, constants: Constants
) -> Tensor:
    """The sums from ordinary operations, for derivatives of the gradient."""
    keep, first = mask != 0, constants[0]
    kept = torch.where(keep, logp, 0.0).to(first.dtype)
    log_ratio = (kept - torch.where(keep, old_logp, 0.0)).clamp(-limit, limit)
    return terms.losses(log_ratio, kept, [torch.where(keep, first, 0.0), *constants[1:]]).sum(-1)


def _sweep(
    terms: Terms, limit: float, logp: Tensor, old_logp: Tensor, mask: Tensor, constants: Constants, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums, lengths and, if ``wanted``, the derivative, rows block by block."""
    (rows, length), first = logp.shape, constants[0]
    step = max(1, min(rows, _BLOCK // max(length, 1)) if logp.is_cpu else rows)
    sums, lengths = first.new_empty(2, rows)
    slope = first.new_empty(logp.shape) if wanted else None
    work, weight, spare, unused = first.new_empty(4, step, length)
    slopes = repeat(unused) if slope is None else slope.split(step)
    # looking at values costs a synchronisation, except on the CPU
    plain = logp.is_cpu and logp.numel() > 0 and math.isfinite(first.sum().item())
    blocks = zip(slopes, *(x.split(step) for x in (logp, old_logp, mask, sums, lengths, *constants)), strict=False)
    for target, new, old, counts, total, number, *own in blocks:
        if len(new) < step:  # the last one
            work, weight, spare, target = (x[: len(new)] for x in (work, weight, spare, target))
        torch.sum(weight.copy_(counts).ne_(0), -1, out=number)
        _subtract(new, old, work)
        if plain and _within(work, limit):
            losses = terms.fill(work, new, target, spare, own)
        else:
            losses = _fill_masked(terms, limit, work, new, target, spare, counts, own)
        if wanted:
            target.mul_(weight)
        torch.sum(losses.mul_(weight), -1, out=total)
    return sums, lengths, slope


def _subtract(new: Tensor, old: Tensor, out: Tensor) -> None:
    if new.dtype == old.dtype == out.dtype:
        torch.sub(new, old, out=out)
    else:
        out.copy_(new).sub_(old)


def _within(log_ratio: Tensor, limit: float) -> bool:
    """Whether no log-ratio is NaN or beyond the limit, those of masked tokens included."""
    low, high = (bound.item() for bound in log_ratio.aminmax())
    return -limit <= low and high <= limit


def _fill_masked(
    terms: Terms,
    limit: float,
    work: Tensor,
    logp: Tensor,
    slope: Tensor,
    spare: Tensor,
    mask: Tensor,
    constants: Constants,
) -> Tensor:
    """:meth:`Terms.fill` where masked tokens may hold anything and log-ratios may be beyond the limit."""
    keep = mask != 0
    work.masked_fill_(~keep, 0.0)
    beyond = work.abs() > limit if terms.through_ratio else None
    own = [torch.where(keep, constants[0], 0.0), *constants[1:]]
    losses = terms.fill(work.clamp_(-limit, limit), torch.where(keep, logp, 0.0), slope, spare, own)
    if beyond is not None:
        slope.masked_fill_(beyond, 0.0)
    return losses
