"""SAPO with its gradient written down: one saved tensor, and no product of an infinite and a vanishing factor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient, transform_reason
from softgate.policy._inputs import PolicyInputs, loss_dtype
from softgate.policy.gates import tau_of
from softgate.policy.objective_options import inputs_of, kl_penalty, reduce_losses

__all__: list[str] = []


class _SapoTokens(torch.autograd.Function):
    """Per-token losses ``-f_tau(r) A``, 0 at masked positions."""

    @staticmethod
    def forward(
        ctx: Any, logp: Tensor, old_logp: Tensor, advantages: Tensor, keep: Tensor, tau: Tensor, limit: float
    ) -> Tensor:
        log_ratio = torch.sub(logp, old_logp).to(advantages.dtype).masked_fill_(~keep, 0.0)
        beyond = log_ratio.abs() > limit
        ratio = log_ratio.clamp_(-limit, limit).exp_()
        x = (ratio - 1).mul_(tau)
        p = torch.sigmoid(x)
        losses = (-4 * advantages / tau) * p
        if logp.requires_grad:
            # sigma(-x) rather than 1 - p, which is 0 from x = 17 on in float32; the clamp has no gradient beyond
            slope = p.mul_(x.neg_().sigmoid_()).mul_(ratio).mul_(-4 * advantages).masked_fill_(beyond | ~keep, 0.0)
            ctx.save_for_backward(logp, old_logp, advantages, keep, tau, slope)
            ctx.limit = limit
        return losses.masked_fill_(~keep, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logp, old_logp, advantages, keep, tau, slope = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled() or transform_reason(logp, grad) is not None or is_batched_gradient(grad):

            def tokens(logp: Tensor) -> Tensor:
                return _tokens(logp, old_logp, advantages, keep, tau, ctx.limit)

            (found,) = differentiable_gradients(tokens, [logp], [True], grad)
            return found, None, None, None, None, None
        return (grad * slope).to(logp.dtype), None, None, None, None, None


def _tokens(logp: Tensor, old_logp: Tensor, advantages: Tensor, keep: Tensor, tau: Tensor, limit: float) -> Tensor:
    """The same from ordinary operations, for derivatives of the gradient."""
    log_ratio = torch.where(keep, (logp - old_logp).to(advantages.dtype), 0.0).clamp(-limit, limit)
    return torch.where(keep, torch.sigmoid(tau * (log_ratio.exp() - 1)) * (-4 * advantages / tau), 0.0)


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
    losses = _SapoTokens.apply(logp, old_logp.detach(), wide, keep, tau, full["max_log_ratio"])
    if centered:
        losses = losses + 2 * wide / tau
    if full["beta"]:
        inputs: PolicyInputs = inputs_of(logp, old_logp, advantages, mask, full)
        losses = losses + kl_penalty(inputs, inputs.log_ratio(full["max_log_ratio"]), full)
    return reduce_losses(losses, keep, full)


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
