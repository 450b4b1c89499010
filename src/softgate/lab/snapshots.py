"""What some matrices of a model looked like at chosen steps of its training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Snapshots"]


class Snapshots:
    """Records matrices before chosen updates; give it to :func:`softgate.lab.training.fit` as part of ``state``.

    Args:
        read: the matrices by name, called without gradients.
        steps: numbers of finished updates at which to look; 0 is the start.
    """

    def __init__(self, read: Callable[[], Mapping[str, Tensor]], steps: Iterable[int]) -> None:
        self.read, self.steps = read, frozenset(steps)
        self.taken: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Record, if ``step`` is one of those chosen."""
        if step in self.steps:
            self.taken[step] = {name: value.detach().cpu().clone() for name, value in self.read().items()}

    def figures(self) -> dict[str, list[Any]]:
        """``frame_step``, and every matrix as a list over these steps."""
        steps = sorted(self.taken)
        names = self.taken[steps[0]] if steps else {}
        frames = {name: [self.taken[step][name].tolist() for step in steps] for name in names}
        return {"frame_step": [float(step) for step in steps], **frames}

    def state_dict(self) -> dict[str, Any]:
        """What has been recorded."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what has been recorded."""
        self.taken = dict(state["taken"])
