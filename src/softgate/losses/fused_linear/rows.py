"""From a few numbers per row to its loss and to the coefficients of its gradient.

With ``m = LSE_{j != y} u_j - u_y`` a softmax-type row has ``log p_y = -softplus(m)``, ``1 - p_y = sigmoid(m)``, and

    dL/du_j = A exp(u_j - top) - C s_j   (j != y),        dL/du_y = B,

with C the upstream gradient and s_j the share of smoothing, so one sweep over the classes gives (top, sum, spread, u_y)
and a second one writes the gradient. Nothing is obtained
as ``p_y - 1``: rows with a large margin keep their gradient. All of it is done in float64: a row costs V products and
these few operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from softgate.losses.fused_linear.settings import Settings

__all__: list[str] = []


@dataclass
class Statistics:
    """What one sweep over the classes finds for n rows; float64, (n,).

    Attributes:
        top: largest score of the classes other than the target.
        total: sum over the others of ``exp(u_j - top)``; for the support vector loss the row's loss.
        spread: ``sum_j s_j u_j`` over all classes but the target, 0 without smoothing.
        target: ``u_y``.
    """

    top: Tensor
    total: Tensor
    spread: Tensor
    target: Tensor


def merged(parts: Iterable[Statistics], *, hinge: bool = False) -> Statistics:
    """Statistics over all classes from those of parts of them; ``hinge`` where ``total`` is a plain sum."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    tops, totals, spreads, targets = (
        torch.stack([getattr(part, name) for part in found]) for name in ("top", "total", "spread", "target")
    )
    top = tops.amax(0)
    if not hinge:
        totals = totals * torch.where(torch.isneginf(tops), 0.0, torch.exp(tops - top))
    return Statistics(top, totals.sum(0), spreads.sum(0), targets.sum(0))


@dataclass
class Rows:
    """What n rows come to; float64, (n,).

    Attributes:
        loss: the row losses.
        lse: log-sum-exp of all scores.
        hit: whether the target's score lies above all others.
        scale, at_target: A and B of the gradient.
    """

    loss: Tensor
    lse: Tensor
    hit: Tensor
    scale: Tensor
    at_target: Tensor


@dataclass
class Slopes:
    """What the gradient of n rows is made of; float64, (n,).

    Attributes:
        top: what exponentials are taken relative to.
        scale, constant: A and C.
        at_target: gradient with respect to the target's logit.
    """

    top: Tensor
    scale: Tensor
    constant: Tensor
    at_target: Tensor

    @cached_property
    def stacked(self) -> Tensor:
        """All of them, (4, n)."""
        return torch.stack((self.top, self.scale, self.constant, self.at_target))


@dataclass(frozen=True)
class Weights:
    """How much n rows count; float64.

    Attributes:
        row: class weight of the target, (n,).
        upstream: gradient of the result with respect to the row's loss, (n,).
        spread_total: ``sum_j s_j``, a number.
        spread_target: ``s_y``, (n,) or 0.
    """

    row: Tensor
    upstream: Tensor
    spread_total: float | Tensor = 0.0
    spread_target: float | Tensor = 0.0


def finish(found: Statistics, weights: Weights, settings: Settings) -> Rows:
    """Losses and gradient coefficients of rows from their statistics."""
    no_other = found.total == 0.0  # every other class is masked: loss 0, gradient 0
    lse_others = torch.where(no_other, float("-inf"), found.top + torch.log(found.total))
    margin = torch.where(no_other, float("-inf"), lse_others - found.target)
    log_p = -torch.logaddexp(torch.zeros_like(margin), margin)
    share = torch.sigmoid(margin)  # 1 - p_y
    lse = torch.logaddexp(lse_others, found.target)
    loss, slope = settings.phi(log_p)
    hard = (1.0 - settings.label_smoothing) * weights.row
    penalty = settings.z_penalty * weights.row
    loss = hard * loss
    if settings.label_smoothing:
        loss = loss + weights.spread_total * lse - (found.spread + weights.spread_target * found.target)
    soft = torch.zeros_like(loss)
    if settings.z_penalty:
        loss = loss + penalty * lse.square()
        soft = 2.0 * penalty * lse
    if settings.label_smoothing:
        soft = soft + weights.spread_total
    total = torch.where(no_other, 1.0, found.total)
    scale = weights.upstream * (hard * slope + soft) * share / total
    at_target = weights.upstream * (soft * log_p.exp() - hard * slope * share - weights.spread_target)
    return Rows(loss, lse, found.target > found.top, scale, at_target)
