"""SAPO with its gradient written down: one saved tensor, and no product of an infinite and a vanishing factor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient, transform_reason
from softgate.policy._inputs import PolicyInputs, loss_dtype
from softgate.policy.aggregation import reduce_sums
from softgate.policy.gates import tau_of
from softgate.policy.objective_options import how_to_reduce, inputs_of, kl_penalty, reduce_losses

__all__: list[str] = []


class _SapoRows(torch.autograd.Function):
    """Losses ``-f_tau(r) A`` summed over the tokens of each row that count, ``(B,)``."""

    @staticmethod
    def forward(
        ctx: Any, logp: Tensor, old_logp: Tensor, advantages: Tensor, keep: Tensor, tau: Tensor, limit: float
    ) -> Tensor:
        log_ratio = torch.sub(logp, old_logp).to(advantages.dtype)
        factor = -4 * advantages / tau
        beyond = None
        if _is_plain(log_ratio, factor, limit):
            weight = keep.to(factor.dtype)  # a product with 0 or 1 is several times faster than a selection
        else:
            log_ratio.masked_fill_(~keep, 0.0)
            beyond = log_ratio.abs() > limit
            log_ratio.clamp_(-limit, limit)
            weight, factor = keep, torch.where(keep, factor, 0.0)
        ratio = log_ratio.exp_()
        x = (ratio - 1).mul_(tau)
        losses = torch.sigmoid(x).mul_(factor).mul_(weight)
        sums = losses.sum(-1)
        if logp.requires_grad:
            # sigma(-x) rather than 1 - p, which is 0 from x = 17 on in float32
            slope = x.neg_().sigmoid_().mul_(ratio).mul_(losses).mul_(tau)
            if beyond is not None:  # the clamp has no gradient there
                slope.masked_fill_(beyond, 0.0)
            ctx.save_for_backward(logp, old_logp, advantages, keep, tau, slope)
            ctx.limit = limit
        return sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logp, old_logp, advantages, keep, tau, slope = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled() or transform_reason(logp, grad) is not None or is_batched_gradient(grad):

            def rows(logp: Tensor) -> Tensor:
                return _rows(logp, old_logp, advantages, keep, tau, ctx.limit)

            (found,) = differentiable_gradients(rows, [logp], [True], grad)
            return found, None, None, None, None, None
        return (grad.unsqueeze(-1) * slope).to(logp.dtype), None, None, None, None, None


def _is_plain(log_ratio: Tensor, factor: Tensor, limit: float) -> bool:
    """Whether nothing is NaN or beyond the limit, masked positions included; only where looking costs no waiting."""
    if not log_ratio.is_cpu or log_ratio.numel() == 0:
        return False
    low, high = (bound.item() for bound in log_ratio.aminmax())
    return -limit <= low and high <= limit and math.isfinite(factor.sum().item())


def _rows(logp: Tensor, old_logp: Tensor, advantages: Tensor, keep: Tensor, tau: Tensor, limit: float) -> Tensor:
    """The same from ordinary operations, for derivatives of the gradient."""
    log_ratio = torch.where(keep, (logp - old_logp).to(advantages.dtype), 0.0).clamp(-limit, limit)
    return torch.where(keep, torch.sigmoid(tau * (log_ratio.exp() - 1)) * (-4 * advantages / tau), 0.0).sum(-1)


def run_closed_form(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    tau_pos: float | Tensor,
    tau_neg: float | Tensor,
    centered: bool,
    gate: str,
    level: str,
    **options: Any,
) -> Tensor:
    """The loss of :func:`softgate.policy.sapo_loss`."""
    full: Any = options
    keep = mask if mask.dtype == torch.bool else mask != 0
    wide = advantages.detach().to(loss_dtype(logp, old_logp))
    wide = wide[:, None] if wide.ndim == 1 else wide
    tau = tau_of(wide, tau_pos, tau_neg)
    sums = _SapoRows.apply(logp, old_logp.detach(), wide, keep, tau, full["max_log_ratio"])
    if centered:
        sums = sums + torch.where(keep, 2 * wide / tau, 0.0).sum(-1)
    loss = reduce_sums(sums, keep, **how_to_reduce(full))
    if full["beta"]:
        inputs: PolicyInputs = inputs_of(logp, old_logp, advantages, mask, full)
        penalty = kl_penalty(inputs, inputs.log_ratio(full["max_log_ratio"]), full)
        loss = loss + reduce_losses(penalty, inputs.mask, full)
    return loss


def closed_form_refuses(
    *args: Any, gate: Any = "sapo", level: str = "token", return_stats: bool = False, **options: Any
) -> str | None:
    """Why the closed form cannot run this call, None if it can."""
    if gate != "sapo":
        return "it knows the gate 'sapo' alone"
    if level != "token":
        return "it gates tokens, not sequences"
    if return_stats:
        return "it does not keep the gates, which statistics need"
    return None
