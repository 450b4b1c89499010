"""Timing that survives a shared machine: candidates take turns; fastest and median turn of each are kept."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from softgate import native
from softgate.errors import ArgumentValueError

#: A turn is repeated inside one measurement until it takes about this long, in seconds: waiting for a GPU costs more.
MEASURABLE = {"cpu": 2e-4, "cuda": 2e-3}
#: One run of a candidate that takes longer warms it up well enough; a second, to see how long it takes, is not needed.
LONG = 1.0


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate.

    Attributes:
        best: fastest turn, the figure least disturbed by others on the machine.
        median: median over the turns.
        p20: first quintile.
        p80: fourth quintile.
        turns: how many turns were taken.
    """

    best: float
    median: float
    p20: float
    p80: float
    turns: int

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    turns: int = 9,
    seconds: float = 0.0,
    most: int = 2000,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Time ``candidates`` in turns, one after the other in every round, so that a disturbance meets them all.

    Every round has an order of its own, the same ones in every run: what a candidate leaves behind, in caches and in
    memory given back to the system, is not always left to the same successor. Every candidate runs once before the
    first round (pages are touched, caches and lazy imports warm).

    Args:
        candidates: name -> function without arguments.
        turns: at least this many rounds.
        seconds: go on until this much time has passed.
        most: but take at most this many rounds.
        device: ``"cpu"`` or ``"cuda"``, whose work is waited for at both ends of a turn.

    Returns:
        name -> :class:`Timing`.
    """
    if not candidates or turns < 1:
        raise ArgumentValueError("candidates must hold a function and turns be at least 1")
    names = list(candidates)
    measure = partial(_measure, clock=_clock(device))
    repeats = {name: _repeats(candidates[name], measure, MEASURABLE[device]) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    shuffle = random.Random(0)
    started = time.perf_counter()
    for round_number in range(most):
        if round_number >= turns and time.perf_counter() - started >= seconds:
            break
        shuffle.shuffle(names)
        for name in names:
            taken[name].append(measure(candidates[name], repeats[name]))
    return {name: _summary(taken[name]) for name in candidates}


def step_seconds(step: Callable[[], object], *, turns: int, warm: int = 1, device: str = "cpu") -> Timing:
    """Time a step that is too long, or too much memory, to take turns with its rivals.

    On the CPU it is the processor time of this process that is counted, which other load on the machine changes little;
    with one thread it is the time on an idle machine. On a GPU it is wall-clock time between synchronisations.

    Args:
        step: function without arguments.
        turns: how often to time it.
        warm: runs before the first timed one.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Seconds per call.
    """
    if turns < 1 or warm < 0:
        raise ArgumentValueError(f"turns must be at least 1 and warm at least 0, got {turns} and {warm}")
    clock = time.process_time if device == "cpu" else _clock(device)
    for _ in range(warm):
        step()
    taken = []
    for _ in range(turns):
        start = clock()
        step()
        taken.append(clock() - start)
    return _summary(taken)


def _clock(device: str) -> Callable[[], float]:
    """Wall-clock time, read when the device has done what it was given."""
    if device == "cpu":
        return time.perf_counter
    import torch

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def _measure(function: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        function()
    return (clock() - start) / repeats


def _repeats(
    function: Callable[[], object], measure: Callable[[Callable[[], object], int], float], measurable: float
) -> int:
    if measure(function, 1) >= LONG:
        return 1
    once = max(min(measure(function, 1) for _ in range(2)), 1e-8)
    return max(1, round(measurable / once))


def _summary(values: list[float]) -> Timing:
    ordered = sorted(values)
    last = len(ordered) - 1
    p20, p80 = ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return Timing(ordered[0], statistics.median(ordered), p20, p80, len(ordered))


def load_per_core() -> float:
    """One-minute load average divided by the cores this process may use; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0] / (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    except (OSError, AttributeError):
        return 0.0


def bandwidth_candidates(source: int, target: int, n: int) -> dict[str, Callable[[], object]]:
    """Streaming read, copy and non-temporal copy of ``n`` floats by the native kernels, to time beside an op.

    Args:
        source: address of the floats to read.
        target: address of room for as many.
        n: how many.
    """
    probe = native.kernels().probe
    kinds = {"read": 0, "copy": 1, "nt_copy": 2}
    return {name: lambda kind=kind: probe(kind, source, target, n) for name, kind in kinds.items()}  # type: ignore[misc]
