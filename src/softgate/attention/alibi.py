"""Attention with linear biases (ALiBi): scores fall with the distance between query and key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softgate.errors import bad_type, bad_value

__all__ = ["alibi_slopes"]


def alibi_slopes(num_heads: int) -> Tensor:
    """Slopes of the heads: 2^(-8h/H) for h = 1 … H.

    With H not a power of two, those of the power of two below it, and the rest from every other slope of the power
    above it, as ALiBi's authors do.

    Args:
        num_heads: number of query heads H, positive.

    Returns:
        (H,) float32, positive, in (0, 1).

    Raises:
        ArgumentTypeError: ``num_heads`` is not an int.
        ArgumentValueError: ``num_heads`` is not positive.

    Example:
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])

    Paper: Train Short, Test Long, arXiv 2108.12409, section 3.
    """
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        bad_type("num_heads", num_heads, "a positive int")
    if num_heads < 1:
        bad_value("num_heads", num_heads, "a positive int")
    power = 2 ** int(math.log2(num_heads))
    slopes = _powers(power) + _powers(2 * power)[::2][: num_heads - power]
    return torch.tensor(slopes, dtype=torch.float32)


def _powers(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * head / heads) for head in range(1, heads + 1)]
