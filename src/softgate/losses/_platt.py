"""Platt scaling: the sigmoid of a score, fitted to labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__: list[str] = []

#: Newton's method on two parameters needs about ten; the rest is for scores that separate the labels.
_STEPS = 100
_SMALLEST_STEP = 2.0**-30


def fit_platt(scores: Tensor, positive: Tensor) -> Tensor:
    """Slopes and offsets ``(2, C)`` of ``sigmoid(slope * score + offset)`` for every column, by maximum likelihood.

    As Platt does, labels are moved inwards to ``(n+ + 1) / (n+ + 2)`` and ``1 / (n- + 2)``, so that the slope is finite
    where a score separates the labels.

    Args:
        scores: ``(N, C)``.
        positive: bool ``(N, C)``.
    """
    f = scores.double()
    count = positive.sum(0).double()
    labels = torch.where(positive, (count + 1) / (count + 2), 1 / (len(f) - count + 2))

    def cost(at: Tensor) -> Tensor:
        logits = at[0] * f + at[1]
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(0)

    found = torch.stack((torch.zeros_like(count), ((count + 1) / (len(f) - count + 1)).log()))
    for _ in range(_STEPS):
        p = torch.sigmoid(found[0] * f + found[1])
        curvature = p * (1 - p)
        slope, offset = ((p - labels) * f).sum(0), (p - labels).sum(0)
        a, b, c = ((curvature * f**power).sum(0) for power in (2, 1, 0))
        a, c = a + 1e-12, c + 1e-12
        step = torch.stack((c * slope - b * offset, a * offset - b * slope)) / (a * c - b * b).clamp_min(1e-24)
        size, before = torch.ones_like(count), cost(found)
        while bool((worse := (cost(found - size * step) > before) & (size > _SMALLEST_STEP)).any()):
            size = torch.where(worse, size / 2, size)
        found = found - size * step
        if bool((step.abs() * size < 1e-10).all()):
            break
    return found
