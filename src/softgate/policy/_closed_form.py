"""The objectives with their gradients written down: one array kept, no infinite factor times a vanishing one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate.policy._clipped import Clips, clipped
from softgate.policy._inputs import loss_dtype
from softgate.policy._row_sums import Constants, Terms, row_sums
from softgate.policy.aggregation import reduce_sums
from softgate.policy.gates import tau_of
from softgate.policy.objective_options import (
    how_to_reduce,
    inputs_of,
    kl_penalty,
    reduce_losses,
    sequence_log_ratio,
)

__all__: list[str] = []


@dataclass(frozen=True)
class _Sapo:
    """``f sigma(tau (r - 1))`` with ``f = -4 A / tau``; constants f and tau."""

    through_ratio = True

    def losses(self, log_ratio: Tensor, logp: Tensor, constants: Constants) -> Tensor:
        factor, tau = constants
        return torch.sigmoid(tau * (log_ratio.exp() - 1)) * factor

    def fill(self, work: Tensor, logp: Tensor, slope: Tensor, spare: Tensor, constants: Constants) -> Tensor:
        (factor, tau), ratio = constants, work.exp_()
        x = torch.sub(ratio, 1, out=slope).mul_(tau)
        losses = torch.sigmoid(x, out=spare).mul_(factor)
        # sigma(-x) rather than 1 - p, which is 0 from x = 17 on in float32
        x.neg_().sigmoid_().mul_(ratio).mul_(losses).mul_(tau)
        return losses


@dataclass(frozen=True)
class _Clipped:
    """``f`` times the ratio, cut from above where ``f = -A < 0``, else from below, and at the cap; constant f."""

    clips: Clips
    through_ratio = True

    def losses(self, log_ratio: Tensor, logp: Tensor, constants: Constants) -> Tensor:
        return clipped(log_ratio, -constants[0], self.clips).loss

    def fill(self, work: Tensor, logp: Tensor, slope: Tensor, spare: Tensor, constants: Constants) -> Tensor:
        (factor,) = constants
        whole = torch.mul(work.exp_(), factor, out=slope)
        least = torch.where(factor < 0, factor * (1 + self.clips.high), factor * (1 - self.clips.low))
        losses = torch.maximum(whole, least, out=work)
        passes = torch.ge(whole, least, out=spare)
        if self.clips.cap < float("inf"):
            most = torch.where(factor > 0, factor * self.clips.cap, float("inf"))
            losses = torch.minimum(losses, most, out=losses)
            passes.mul_(whole <= most)
        whole.mul_(passes)
        return losses


@dataclass(frozen=True)
class _Weighted:
    """``f`` times log pi times the capped ratio, which is a constant; constant ``f = -A``."""

    cap: float
    through_ratio = False

    def losses(self, log_ratio: Tensor, logp: Tensor, constants: Constants) -> Tensor:
        return log_ratio.detach().exp().clamp(max=self.cap) * constants[0] * logp

    def fill(self, work: Tensor, logp: Tensor, slope: Tensor, spare: Tensor, constants: Constants) -> Tensor:
        return torch.mul(torch.mul(work.exp_().clamp_(max=self.cap), constants[0], out=slope), logp, out=spare)


@dataclass(frozen=True)
class _LogRatio:
    """``f`` times the log-ratio itself; constant f."""

    through_ratio = True

    def losses(self, log_ratio: Tensor, logp: Tensor, constants: Constants) -> Tensor:
        return log_ratio * constants[0]

    def fill(self, work: Tensor, logp: Tensor, slope: Tensor, spare: Tensor, constants: Constants) -> Tensor:
        slope.copy_(constants[0].expand_as(slope))
        return work.mul_(constants[0])


def with_stats(run: Callable[..., Tensor], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The closed form ``run``; statistics, where asked for, are those of the reference, which then keeps no graph."""

    def whole(*args: Any, return_stats: bool = False, **options: Any) -> Any:
        loss = run(*args, **options)
        if not return_stats:
            return loss
        with torch.no_grad():
            return loss, reference(*args, return_stats=True, **options)[1]

    return whole


class _Rows:
    """A call of an objective, on the way from row sums to the loss."""

    def __init__(self, tensors: tuple[Tensor, ...], full: Any) -> None:
        (logp, old_logp, advantages, _), self.tensors, self.full = tensors, tensors, full
        wide = advantages.detach().to(loss_dtype(logp, old_logp))
        #: Advantages ``(B, 1)`` or ``(B, T)`` in the dtype of the loss.
        self.advantages = wide[:, None] if wide.ndim == 1 else wide

    def sums(self, terms: Terms, *constants: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the terms over the tokens of each row, and how many those are."""
        logp, old_logp, _, mask = self.tensors
        return row_sums(terms, self.full["max_log_ratio"], logp, old_logp.detach(), mask, *constants)

    def loss(self, sums: Tensor, lengths: Tensor, level: str = "token") -> Tensor:
        """The aggregate of losses that have been summed over rows, with the KL term where there is one."""
        full = self.full
        loss = reduce_sums(sums, lengths, **how_to_reduce(full))
        if not full["beta"]:
            return loss
        logp, old_logp, advantages, mask = self.tensors
        inputs, limit = inputs_of(logp, old_logp, advantages, mask, full), full["max_log_ratio"]
        log_weight = inputs.log_ratio(limit) if level == "token" else sequence_log_ratio(inputs, limit)
        return loss + reduce_losses(kl_penalty(inputs, log_weight, full), inputs.mask, full)


def run_sapo(
    *args: Tensor, tau_pos: float | Tensor, tau_neg: float | Tensor, centered: bool, gate: str, level: str, **full: Any
) -> Tensor:
    """The loss of :func:`softgate.policy.sapo_loss`."""
    rows = _Rows(args, full)
    tau = tau_of(rows.advantages, tau_pos, tau_neg)
    sums, lengths = rows.sums(_Sapo(), -4 * rows.advantages / tau, tau)
    if centered:
        sums = sums + torch.where(args[3] != 0, 2 * rows.advantages / tau, 0.0).sum(-1)
    return rows.loss(sums, lengths)


def sapo_refuses(
    *args: Any, gate: Any = "sapo", level: str = "token", return_stats: bool = False, **options: Any
) -> str | None:
    """Why the closed form cannot run this call, None if it can."""
    if return_stats:
        return "with statistics, as trainers ask for them, gradients keep the bits of TRL's own loss"
    if gate != "sapo":
        return "it knows the gate 'sapo' alone"
    return None if level == "token" else "it gates tokens, not sequences"


def run_grpo(
    *args: Tensor, eps_low: float, eps_high: float, delta: float | None, dual_clip: float | None, **full: Any
) -> Tensor:
    """The loss of :func:`softgate.policy.grpo_loss`."""
    rows = _Rows(args, full)
    return rows.loss(*rows.sums(_Clipped(Clips(eps_low, eps_high, delta, dual_clip)), -rows.advantages))


def run_cispo(*args: Tensor, eps_max: float, **full: Any) -> Tensor:
    """The loss of :func:`softgate.policy.cispo_loss`."""
    rows = _Rows(args, full)
    return rows.loss(*rows.sums(_Weighted(eps_max), -rows.advantages))


def run_gspo(*args: Tensor, eps_low: float, eps_high: float, level: str, **full: Any) -> Tensor:
    """The loss of :func:`softgate.policy.gspo_loss`: one ratio, and one loss, per row."""
    rows = _Rows(args, full)
    sums, lengths = rows.sums(_LogRatio(), torch.ones_like(rows.advantages))
    advantages = torch.where(lengths > 0, rows.advantages[:, 0], 0.0)
    losses = clipped(sums / lengths.clamp(min=1), advantages, Clips(eps_low, eps_high)).loss
    return rows.loss(losses * lengths, lengths, "sequence")


def gspo_refuses(*args: Any, level: str = "sequence", **options: Any) -> str | None:
    """Why the closed form cannot run this call, None if it can."""
    if level != "sequence":
        return "it knows one ratio per sequence, not those of tokens"
    advantages = args[2]
    if advantages.ndim == 2 and advantages.shape[1] != 1:
        return "it knows one advantage per sequence"
    return None


def never_refuses(*args: Any, **options: Any) -> str | None:
    """The closed form runs every call."""
    return None
