"""From what a stage returns to one vector a sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from softgate.dynamic._state import leaves
from softgate.errors import bad_value

#: Standard deviation of a new head's weights, as in the authors' code; its bias is 0.
HEAD_STD = 0.02


class MeanPool(nn.Module):
    """Mean over positions: (N, D), (N, T, D) or (N, D, H, W) -> (N, D), of the first tensor of the state."""

    def forward(self, state: Any) -> Tensor:
        """One vector a sample."""
        x = next(leaves(state))
        if x.ndim == 2:
            return x
        if x.ndim == 3:
            return x.mean(1)
        if x.ndim != 4:
            bad_value("the state of an exit without its own pool", tuple(x.shape), "(N, D), (N, T, D) or (N, D, H, W)")
        return x.mean((-2, -1))


class TokenPool(nn.Module):
    """Normalise tokens (N, T, D), then take the class token or the mean of those behind the prefix, (N, D)."""

    def __init__(self, norm: nn.Module, *, prefix: int = 1, average: bool = False, after: nn.Module | None = None):
        super().__init__()
        self.norm = norm
        self.after = after or nn.Identity()
        self.prefix, self.average = prefix, average

    def forward(self, state: Any) -> Tensor:
        """One vector a sample."""
        x = next(leaves(state))
        if not self.average:  # normalisation is token by token: only one is needed
            pooled: Tensor = self.after(self.norm(x[:, 0]))
            return pooled
        averaged: Tensor = self.after(self.norm(x)[:, self.prefix :].mean(1))
        return averaged


def exit_head(width: int, classes: int) -> nn.Linear:
    """A new linear head, ``width`` features -> ``classes`` logits."""
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
    return head


class LazyHead(nn.LazyLinear):
    """A head whose width is found at its first call."""

    def reset_parameters(self) -> None:
        """Initialise as :func:`exit_head`, once the width is known."""
        if not self.has_uninitialized_params() and self.in_features != 0:
            nn.init.trunc_normal_(self.weight, std=HEAD_STD)
            nn.init.zeros_(self.bias)
