"""Running a network with exits: whole batches that shrink, and sample by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softgate._checks import check_number
from softgate._math.compress import compute_dtype
from softgate.dynamic._state import count_rows, leaves, mapped, take
from softgate.dynamic.exit_rule import opens

if TYPE_CHECKING:
    from softgate.dynamic.early_exit import EarlyExit

#: Fewer rows than this take as long as half of them: dropping some saves nothing.
_FEWEST = {"cpu": 16, "cuda": 32}
#: Multiply-adds that the hardware could do while it copies one number.
_COPY = 16


def deepest(model: EarlyExit, budget: Any) -> int:
    """The last exit whose cost is within ``budget``."""
    exits = len(model.stages)
    if budget is None:
        return exits - 1
    costs = model.costs.tolist()
    check_number("budget", budget, low=costs[0])
    return max(place for place in range(exits) if costs[place] <= budget)


def run_sequential(model: EarlyExit, x: Any, budget: Any) -> tuple[Tensor, Tensor]:
    """One sample after the other, each until a gate opens."""
    rows = count_rows(x)
    if rows <= 1:
        return run_compact(model, x, budget, None)
    found = [run_compact(model, mapped(x, lambda t, i=i: t[i : i + 1]), budget, None) for i in range(rows)]  # type: ignore[misc]
    logits, level = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(level)


class _Batch:
    """Samples on their way: which rows are still in, which samples they are, what has been decided.

    ``index`` is None while row i is sample i. ``before`` sums the gates that a row has met, in float64 as
    :func:`softgate.dynamic.exit_level` does.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.index: Tensor | None = None
        self.waiting = torch.ones(rows, dtype=torch.bool, device=device)
        self.before = torch.zeros(rows, dtype=torch.float64, device=device)
        self.level = torch.full((rows,), -1, device=device)
        self.logits: Tensor | None = None

    def leave(self, leaving: Tensor, logits: Tensor, level: Tensor | int) -> None:
        """Write down what exit ``level`` says of the ``leaving`` rows; nothing waits for a device here."""
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.level), logits.shape[-1])
        if self.index is None:
            self.logits = torch.where(leaving.unsqueeze(-1), logits, self.logits)
            self.level = torch.where(leaving, level, self.level)
        else:
            kept = self.logits.index_select(0, self.index)
            self.logits.index_copy_(0, self.index, torch.where(leaving.unsqueeze(-1), logits, kept))
            level = torch.where(leaving, level, self.level.index_select(0, self.index))
            self.level.index_copy_(0, self.index, level)
        self.waiting = self.waiting & ~leaving

    def drop(self, state: Any, count: int) -> Any:
        """Go on with the ``count`` rows that wait."""
        rows = self.waiting.nonzero_static(size=count).squeeze(-1)
        self.index = rows if self.index is None else self.index.index_select(0, rows)
        self.before = self.before.index_select(0, rows)
        self.waiting = torch.ones_like(rows, dtype=torch.bool)
        return take(state, rows)


def run_compact(model: EarlyExit, x: Any, budget: Any, min_compact: float | None) -> tuple[Tensor, Tensor]:
    """The whole batch; rows that are done are dropped where that pays, never if ``min_compact`` is None."""
    if min_compact is not None:
        check_number("min_compact", min_compact, low=0.0, low_open=True, high=1.0)
    last, rows = deepest(model, budget), count_rows(x)
    batch = _Batch(rows, next(leaves(x)).device)
    state = x
    for place in range(last + 1):
        size = len(batch.waiting)
        state = model.stage(state, place, size)
        logits = model.classify(state, place)
        if place == last:
            lost = batch.before.isnan() if place == len(model.gates) else torch.zeros_like(batch.waiting)
            batch.leave(batch.waiting, logits, torch.where(lost, -1, place))
            break
        gate = model.gates[place](logits)
        gate = gate.to(compute_dtype(gate.dtype)).sigmoid().double()
        batch.leave(batch.waiting & opens(gate, batch.before), logits, place)
        batch.before = batch.before + gate
        count = int(batch.waiting.sum())
        if count == 0 and rows:
            break
        if min_compact is not None and _pays(model, state, place, size, count, min_compact):
            state = batch.drop(state, count)
    assert batch.logits is not None
    return batch.logits, batch.level


def _pays(model: EarlyExit, state: Any, place: int, size: int, count: int, min_compact: float) -> bool:
    """Whether dropping ``size - count`` of ``size`` rows after exit ``place`` saves more than the copy costs."""
    device = next(leaves(state)).device.type
    if size < _FEWEST.get(device, _FEWEST["cuda"]) or size - count < min_compact * size:
        return False
    if model.measured is None:
        return True
    remaining = int(model.measured.stages[place + 1 :].sum())
    numbers = sum(tensor.numel() for tensor in leaves(state)) // size
    return (size - count) * remaining > count * numbers * _COPY
