"""From rows with a group id, in any order, to lists of candidates, padded where groups are of unequal size."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._checks import check_same_device
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.policy._runs import Runs

__all__: list[str] = []


class Groups(NamedTuple):
    """Where the candidates of every group stand among the rows.

    Attributes:
        rows: (P, n) int64, row of every candidate, groups in the order of their ids and rows in their own order; None
            where the rows are the lists already.
        kept: (P, n) bool, False where a group has no further candidate; None if all are full.
        shape: (P, n).
    """

    rows: Tensor | None
    kept: Tensor | None
    shape: tuple[int, int]

    def lists(self, values: Tensor) -> Tensor:
        """Values (B,) as (P, n); what stands at padded places is the value of some row."""
        if self.rows is None:
            return values.reshape(self.shape)
        return values.gather(0, self.rows.flatten()).reshape(self.shape)


def check_group_id(group_id: Any, like: Tensor) -> None:
    """Raise unless ``group_id`` is the size of contiguous groups or an integer tensor with an id for every row."""
    rows = like.shape[0]
    if isinstance(group_id, int) and not isinstance(group_id, bool):
        if group_id < 1 or rows % group_id:
            raise ArgumentValueError(f"group_id must divide the number of rows ({rows}) as a size, got {group_id}")
        return
    if not isinstance(group_id, Tensor):
        bad_type("group_id", group_id, "an integer tensor, or the size of contiguous groups")
    if (
        group_id.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8)
        or group_id.layout is not torch.strided
    ):
        raise ArgumentTypeError(f"group_id must be a dense integer tensor, got {group_id.dtype}, {group_id.layout}")
    if group_id.shape != (rows,):
        bad_value("group_id", tuple(group_id.shape), f"of shape ({rows},)")
    check_same_device(logp=like, group_id=group_id)


def grouped(group_id: Tensor | int, rows: int) -> Groups:
    """The lists of ``rows`` rows. While tracing, where sizes are unknown, (B, B) is the smallest shape that holds all.

    Args:
        group_id: (B,) integers, equal for candidates of one context; or the size of contiguous groups.
        rows: B.
    """
    if isinstance(group_id, int):
        return Groups(None, None, (rows // group_id, group_id))
    if rows == 0:
        return Groups(None, None, (0, 1))
    if transform_reason(group_id) is None:
        runs = Runs.of(group_id)
        order, sizes = runs.order, runs.sizes
        widest = int(sizes.max())
    else:
        order, sizes = _traced(group_id)
        widest = rows
    count, place = sizes.shape[0], torch.arange(widest, device=group_id.device)
    starts = sizes.cumsum(0) - sizes
    position = (starts[:, None] + place).clamp_max(rows - 1)
    kept = None if count * widest == rows else place < sizes[:, None]
    return Groups(position if order is None else order[position], kept, (count, widest))


def _traced(group_id: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by group and the sizes of the groups, followed by zeros, (B,) both: no shape depends on the ids."""
    ids, order = torch.sort(group_id, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = ids[1:] != ids[:-1]
    slot = first.cumsum(0) - 1
    return order, torch.zeros_like(slot).scatter_add(0, slot, torch.ones_like(slot))
