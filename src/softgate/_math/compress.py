"""The logarithmic compression behind StableMax, and a log-softmax that keeps what softmax throws away."""

from __future__ import annotations

import torch
from torch import Tensor

__all__: list[str] = []


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which a row is summed: float32 for the 16-bit types, otherwise the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def compress(x: Tensor) -> Tensor:
    """Signed logarithm ``g(x) = sign(x) log(1 + |x|)``, with derivative ``1 / (1 + |x|)`` everywhere.

    Selecting on ``x >= 0`` before the logarithm keeps the derivative at exactly 0 equal to 1; autograd of
    ``sign(x) * log1p(abs(x))`` gives 0 there and stops the training of zero-initialised heads.

    Args:
        x: real tensor of any shape. ``+-inf`` maps to ``+-inf``, NaN to NaN.

    Returns:
        Tensor of the same shape.

    Source: arXiv 2501.04697, sec. 4 (``log s(x)``, s from eq. 6).
    """
    positive = x >= 0
    magnitude = torch.log1p(torch.where(positive, x, -x))
    return torch.where(positive, magnitude, -magnitude)


def compressed_scores(x: Tensor, dim: int) -> Tensor:
    """``g(x)`` prepared for a softmax along ``dim``: a row that holds ``+inf`` takes its limit.

    In such a row the infinite entries get 0 and all others ``-inf``, so that they share probability 1. NaN stays NaN.
    """
    scores = compress(x)
    top = scores == float("inf")
    shift = torch.where(top.any(dim, keepdim=True), float("inf"), 0.0).to(scores.dtype)
    return torch.where(top, 0.0, scores - shift)


def exclusive_log_softmax(scores: Tensor, dim: int) -> Tensor:
    """Log-softmax whose largest entry keeps full relative precision, in value and in gradient.

    ``log_softmax`` forms ``log(1 + R)`` with R the sum over all entries but the largest, and loses R once it is below
    the rounding of 1 (margin 17 in float32). Here the largest entry is left out of the sum, which gives ``log1p(R)``
    and the gradient ``-R / (1 + R)`` of that entry as one product instead of a difference of numbers close to 1.

    Args:
        scores: real tensor; ``-inf`` is a masked entry, a row with ``+inf`` or without a finite entry gives NaN.
        dim: axis of the classes.

    Returns:
        Log-probabilities, same shape.
    """
    if scores.shape[dim] == 0:
        return torch.log_softmax(scores, dim)
    index = scores.argmax(dim, keepdim=True)
    largest = scores.gather(dim, index)
    excluded = torch.zeros_like(scores, dtype=torch.bool).scatter(dim, index, True)
    below = scores - largest
    rest = below.masked_fill(excluded, float("-inf")).exp().sum(dim, keepdim=True)
    # inf - inf is NaN: an infinite or masked-out row must not come out as probability 1
    invalid = (largest - largest).detach()
    return below.masked_fill(excluded, 0.0) - torch.log1p(rest + invalid)
