"""Early stopping of several classifiers that are trained together, each on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WarmUp:
    """Keeps the best weights of every head by validation accuracy, and says which heads still train.

    Args:
        heads: the classifiers.
        epochs: after so many the warm-up is over in any case.
        patience: epochs without gain after which a head stops.
    """

    def __init__(self, heads: nn.ModuleList, *, epochs: int, patience: int) -> None:
        self.heads, self.epochs, self.patience = heads, epochs, patience
        self.running = epochs > 0
        self.done = 0
        self.best = [-1.0] * len(heads)
        self.stale = [0] * len(heads)
        self.weights: list[dict[str, Tensor]] = [{} for _ in heads]

    @property
    def active(self) -> Tensor:
        """(L,) bool: the heads that still train."""
        return torch.tensor([stale < self.patience for stale in self.stale])

    @torch.no_grad()
    def end_epoch(self, accuracy: Sequence[float]) -> None:
        """Judge the heads by their validation ``accuracy``; at the end every head gets its best weights back."""
        active = self.active.tolist()
        self.done += 1
        for place, head in enumerate(self.heads):
            if not active[place]:
                continue
            if accuracy[place] > self.best[place]:
                self.best[place], self.stale[place] = accuracy[place], 0
                self.weights[place] = {name: value.clone() for name, value in head.state_dict().items()}
            else:
                self.stale[place] += 1
        self.running = self.done < self.epochs and bool(self.active.any())
        for place, head in enumerate(self.heads):
            if not self.running or not bool(self.active[place]):
                head.load_state_dict(self.weights[place])

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs."""
        return {name: getattr(self, name) for name in ("running", "done", "best", "stale", "weights")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)
