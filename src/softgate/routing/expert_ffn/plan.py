"""In which order the assignments of tokens to experts are computed.

S = T·K assignments, number t·K + k for the k-th expert of token t. E stands for "no expert" (the sentinel).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError


class Segment(NamedTuple):
    """Rows ``start:end`` belong to one expert."""

    expert: int
    start: int
    end: int


class Plan(NamedTuple):
    """The assignments in the order of their experts; those without an expert come last.

    Attributes:
        order: (S,) int64, the assignment at each place.
        ends: (E,) int64, where each expert's rows end.
        is_sorted: False where every assignment is at its own place, and ``ends`` says nothing.
    """

    order: Tensor
    ends: Tensor
    is_sorted: bool


def check_range(indices: Tensor, experts: int) -> None:
    """Raise where an index is neither an expert nor the sentinel; on the CPU, where looking costs nothing."""
    if indices.device.type != "cpu" or not indices.numel():
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high > experts:
        raise ArgumentValueError(
            f"indices must be in [0, {experts - 1}], or {experts} for no expert, got values from {low} to {high}"
        )


def by_expert(indices: Tensor, experts: int) -> Plan:
    """Sort the assignments by expert, in the order of the tokens within each."""
    sorted_experts, order = torch.sort(indices.reshape(-1), stable=True)
    every = torch.arange(experts, device=indices.device)
    return Plan(order, torch.searchsorted(sorted_experts, every, right=True), True)


def as_they_come(indices: Tensor, experts: int) -> Plan:
    """Every assignment at its own place, for a handful of tokens that are not worth sorting."""
    count = indices.numel()
    return Plan(torch.arange(count, device=indices.device), indices.new_zeros(experts), False)


def segments_of(plan: Plan, indices: Tensor, experts: int) -> list[Segment]:
    """The rows of each expert that has some, on the host (an accelerator is waited for, once)."""
    if not plan.is_sorted:
        return [Segment(e, row, row + 1) for row, e in enumerate(indices.reshape(-1).tolist()) if e < experts]
    found, start = [], 0
    for expert, end in enumerate(plan.ends.tolist()):
        if end > start:
            found.append(Segment(expert, start, end))
        start = end
    return found


def blocks(segments: list[Segment], rows: int, *, split: bool) -> Iterator[list[Segment]]:
    """Group consecutive segments into blocks of at most ``rows`` rows; longer ones are cut if ``split``."""
    block: list[Segment] = []
    for expert, first, last in segments:
        start = first
        while start < last:
            room = rows - (block[-1].end - block[0].start if block else 0)
            left = last - start
            if block and left > room and (left <= rows or not split or not room):  # whole in the next block
                yield block
                block = []
                continue
            take = min(left, room) if split else left
            block.append(Segment(expert, start, start + take))
            start += take
    if block:
        yield block


def inverse(order: Tensor) -> Tensor:
    """Place of each assignment."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
