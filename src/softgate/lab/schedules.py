"""Learning-rate schedules: a factor on the base rate as a function of the step, so that nothing has to be saved."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "constant")


def lr_factor(step: int, *, steps: int, warmup: int = 0, schedule: str = "cosine", min_ratio: float = 0.1) -> float:
    """Factor on the learning rate of update ``step`` (0 for the first).

    Linear from ``1 / warmup`` to 1 over the first ``warmup`` updates; then constant, or half a cosine from 1 that
    reaches ``min_ratio`` at the last update.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
