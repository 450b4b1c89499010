"""Order-preserving maps from the scores of one context, along the last dimension, to probabilities.

All of this is a reconstruction: only the abstract and the first page of arXiv 2305.14859 were available, and the
paper's own equation is not among it.
"""

from __future__ import annotations

import warnings
from math import inf

import torch
from torch import Tensor

from softgate.dispatch import transform_reason

__all__: list[str] = []


def power(logits: Tensor, beta: float) -> Tensor:
    """Logarithm of ``softmax(beta z)``; ``beta = inf`` shares everything between the largest."""
    if beta == inf:
        return _shared(logits == logits.amax(-1, keepdim=True), logits)
    # 0 times -inf would be NaN: a masked entry stays masked for every beta
    return torch.log_softmax(torch.where(logits == -inf, -inf, beta * logits), -1)


def noise_inverse(logits: Tensor, eps: float) -> Tensor:
    """``max(0, P - eps / V)``, normalised: undoes labels that are replaced by a uniform one with probability eps."""
    p = torch.softmax(logits, -1)
    kept = torch.relu(p - eps / max(logits.shape[-1], 1))
    empty = kept.sum(-1, keepdim=True) == 0.0
    if transform_reason(logits) is None and logits.is_cpu and bool(empty.any()):
        warnings.warn("noise_inverse left no probability in a row; its largest entries share it", stacklevel=5)
    kept = torch.where(empty, (p == p.amax(-1, keepdim=True)).to(p.dtype), kept)
    return kept / kept.sum(-1, keepdim=True)


def rank(logits: Tensor, exponent: float) -> Tensor:
    """Weights ``1 / rank^exponent`` of the entries in descending order; ties share the mean of their ranks' weights."""
    size = logits.shape[-1]
    weight = torch.arange(1, size + 1, dtype=logits.dtype, device=logits.device) ** -exponent
    summed = torch.cat([weight.new_zeros(1), weight.cumsum(0)])
    ascending = logits.detach().sort(-1).values.contiguous()
    scores = logits.detach().contiguous()
    above = size - torch.searchsorted(ascending, scores, right=True)
    not_below = size - torch.searchsorted(ascending, scores)
    ties = (not_below - above).clamp(min=1)
    shared = (summed[not_below] - summed[above]) / ties
    shared = torch.where(logits == -inf, 0.0, shared)
    # an all-masked row and a NaN have no order: NaN, as in softmax
    bad = (logits == -inf).all(-1, keepdim=True) | logits.isnan().any(-1, keepdim=True)
    return torch.where(bad, torch.nan, shared / shared.sum(-1, keepdim=True))


def isotonic(logits: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """``g(P)``, normalised, with g the straight lines between ``(knots, values)``, both increasing from 0 to 1."""
    p = torch.softmax(logits, -1)
    place = torch.bucketize(p.detach(), knots, right=True).clamp(1, len(knots) - 1)
    left, right = knots[place - 1], knots[place]
    slope = (values[place] - values[place - 1]) / (right - left)
    mapped = values[place - 1] + slope * (p - left)
    return mapped / mapped.sum(-1, keepdim=True)


def _shared(chosen: Tensor, logits: Tensor) -> Tensor:
    count = chosen.sum(-1, keepdim=True).to(logits.dtype)
    log_p = torch.where(chosen, -count.log(), -inf)
    bad = (logits == -inf).all(-1, keepdim=True) | ~(logits < inf).all(-1, keepdim=True)
    return torch.where(bad, torch.nan, log_p)
