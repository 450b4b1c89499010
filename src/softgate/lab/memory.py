"""How much memory a step takes while it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["peak_bytes"]


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """Highest sum of live allocations of torch that ``step`` makes, above what was there before it.

    Args:
        step: function without arguments; on a CPU run it once before, so that nothing is counted that stays for good.
        device: ``"cpu"`` or ``"cuda"``, where ``step`` computes.
    """
    if device != "cpu":
        step()  # workspaces of libraries, and compilation, are no memory of the step
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
