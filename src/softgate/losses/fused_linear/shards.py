"""A vocabulary that is spread over processes: each holds the weights of some neighbouring classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softgate.losses.fused_linear.rows import Statistics

__all__: list[str] = []


@dataclass(frozen=True)
class Shard:
    """The classes ``start, ..., start + here - 1`` of ``classes``; ``group`` is None where one process has them all."""

    start: int
    here: int
    classes: int
    group: Any = None

    @classmethod
    def of(cls, weight: Tensor, group: Any) -> Shard:
        """The shard of this process; the processes' classes follow one another in the order of their ranks."""
        here = weight.shape[0]
        if group is None:
            return cls(0, here, here)
        sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=weight.device)
        rank = dist.get_rank(group)
        sizes[rank] = here
        dist.all_reduce(sizes, group=group)
        return cls(int(sizes[:rank].sum()), here, int(sizes.sum()), group)

    def local(self, labels: Tensor) -> Tensor:
        """Column of each label here, -1 where another process has it."""
        if self.group is None:
            return labels
        column = labels - self.start
        return torch.where((column >= 0) & (column < self.here), column, -1)

    def merge(self, found: Statistics, *, hinge: bool = False) -> Statistics:
        """Statistics over all classes from those of every process: three numbers per row travel."""
        if self.group is None:
            return found
        top = found.top.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self.group)
        factor = torch.where(torch.isneginf(found.top), 0.0, torch.exp(found.top - top))
        total = found.total if hinge else found.total * factor
        sums = torch.stack([total, found.spread, found.target])
        dist.all_reduce(sums, group=self.group)
        return Statistics(top, *sums)

    def add_up(self, gradient: Tensor) -> None:
        """Sum a gradient of what all processes share."""
        if self.group is not None:
            dist.all_reduce(gradient, group=self.group)
