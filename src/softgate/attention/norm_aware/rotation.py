"""Rotary positions of features, in one and two dimensions, in the layout of the authors' code.

Neighbouring features (even, odd) turn together. In norm-aware linear attention the features are turned, not the
queries and keys, and in the numerator only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate.errors import ArgumentValueError, bad_type, bad_value

#: cos and sin, each (S, D).
Rope = tuple[Tensor, Tensor]


def line_rope(positions: Tensor, dim: int, base: float = 10000.0) -> Rope:
    """Tables (len(positions), dim) for positions along a line; ``dim`` is even.

    The frequencies are those of the authors' map, ``base^(-i/(n-1))`` with i = 0 … n-1, here with n = dim/2.
    """
    _check_dim(dim, 2)
    angles = _angles(positions, dim // 2, base)
    return angles.cos(), angles.sin()


def map_rope(height: int, width: int, dim: int, base: float = 10000.0, device: torch.device | None = None) -> Rope:
    """Tables (height·width, dim) for the tokens of a map, row by row; ``dim`` is a multiple of 4.

    The first half of the features turns with the row, the second half with the column.
    """
    _check_dim(dim, 4)
    rows = _angles(torch.arange(height, device=device), dim // 4, base)
    columns = _angles(torch.arange(width, device=device), dim // 4, base)
    grid = (height, width, dim // 2)
    angles = torch.cat((rows[:, None].expand(grid), columns[None].expand(grid)), dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def _check_dim(dim: int, multiple: int) -> None:
    if dim % multiple:
        bad_value("dim", dim, f"a multiple of {multiple}, to turn in pairs")


def _angles(positions: Tensor, frequencies: int, base: float) -> Tensor:
    check_number("base", base, low=0.0, low_open=True)
    exponents = torch.linspace(0, 1, frequencies, dtype=torch.float64, device=positions.device)
    angles = positions.double()[:, None] * base**-exponents
    return angles.repeat_interleave(2, dim=-1).float()


def turn(features: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``features`` (…, S, 2D): both halves by the tables (S, D)."""
    return turn_pairs(features.unflatten(-1, (2, -1)), cos.unsqueeze(-2), sin.unsqueeze(-2)).flatten(-2)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbours (even, odd) in the last dimension of ``x``."""
    partner = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + partner * sin


def check_rope(rope: Any, query: Tensor, key: Tensor) -> None:
    """Raise unless ``rope`` is None or a pair of tables that fits the keys."""
    if rope is None:
        return
    if not isinstance(rope, tuple) or len(rope) != 2:
        bad_type("rope", rope, "a pair (cos, sin) of tensors or None")
    expected = (key.shape[-2], key.shape[-1])
    for table in rope:
        check_float_tensor("rope", table)
        check_same_device(query=query, rope=table)
        if tuple(table.shape) != expected:
            raise ArgumentValueError(
                f"rope must be tables of shape (key length, features) = {expected}, got {tuple(table.shape)}"
            )
    if expected[1] % 2:
        raise ArgumentValueError(f"rope needs an even number of features, got {expected[1]}")
    if query.shape[-2] > key.shape[-2]:
        raise ArgumentValueError(
            f"rope gives positions to keys and the last queries share them, so queries ({query.shape[-2]}) may not be "
            f"more than keys ({key.shape[-2]})"
        )
