"""Picking the k largest scores with ties that always fall the same way, and the arguments that gates share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._math.masks import accumulation_dtype
from softgate.errors import bad_type, bad_value

#: Up to here k passes over the scores are faster than sorting all of them.
_FEW = 8


def largest(scores: Tensor, k: int) -> Tensor:
    """Indices (…, k) of the k largest entries along the last axis, in falling order; ties: the first.

    torch.topk promises nothing about ties. NaN counts as largest, as in torch. -inf is chosen last, but never twice.
    """
    scores = scores.detach()
    if k > _FEW:
        return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
    # what has been taken becomes -inf, so entries that are -inf from the start must lie above it
    left = scores.clamp_min(torch.finfo(scores.dtype).min)
    places = torch.arange(scores.shape[-1], device=scores.device)
    found = []
    for _ in range(k):
        found.append(left.argmax(-1))
        left = left.masked_fill(places == found[-1][..., None], -torch.inf)
    return torch.stack(found, -1)


def widened(x: Tensor) -> Tensor:
    """16-bit tensors in float32: softmax in bfloat16 makes ties where there are none."""
    return x.to(accumulation_dtype(x.dtype))


def check_count(name: str, value: Any, low: int = 1, high: int | None = None, what: str = "") -> int:
    """Return ``value`` if it is an int between ``low`` and ``high`` (``what`` says what the bound is)."""
    allowed = f"an int of at least {low}" if high is None else f"an int in [{low}, {high}]{what}"
    if isinstance(value, bool) or not isinstance(value, int):
        bad_type(name, value, allowed)
    if value < low or (high is not None and value > high):
        bad_value(name, value, allowed)
    return value
