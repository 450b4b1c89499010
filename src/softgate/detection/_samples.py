"""Boxes for the generated checks."""

from __future__ import annotations

import torch
from torch import Tensor


def scattered(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Corners (count, 4) of overlapping boxes and scores (count,), float64, on grids that 16-bit types hold exactly.

    Scores are distinct and far enough apart that rounding never decides an order; so are the places of corners.
    """
    low = torch.randint(0, 24, (count, 2), generator=generator, dtype=torch.int64).double()
    side = torch.randint(20, 60, (count, 2), generator=generator, dtype=torch.int64).double()
    wiggle = torch.randperm(4 * max(count, 1), generator=generator)[: 4 * count].double().reshape(count, 4) / 64
    scores = (torch.randperm(count, generator=generator).double() + 1) / (count + 1)
    return torch.cat((low, low + side), 1) + wiggle, (scores * 64).round() / 64
