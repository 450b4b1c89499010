"""Low-rank adaptation (LoRA) that stays un-merged, as the rival of adapters that cannot be merged."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LowRank", "add_low_rank"]


class LowRank(nn.Module):
    """A frozen linear layer plus a product of two thin matrices, the second of which starts at zero.

    Args:
        layer: the frozen layer.
        rank: inner size r.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.a = nn.Parameter(torch.empty(rank, layer.in_features))
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the correction."""
        out: Tensor = self.layer(x)
        return out + functional.linear(functional.linear(x, self.a), self.b)


def add_low_rank(model: nn.Module, rank: int, names: Collection[str]) -> nn.Module:
    """Freeze ``model`` and put :class:`LowRank` in the place of its linear layers whose last name is in ``names``."""
    model.requires_grad_(False)
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            if name in names and isinstance(layer, nn.Linear):
                setattr(owner, name, LowRank(layer, rank))
    return model
