"""What a training step of each variant costs: time in turns, peak memory one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from softgate.lab.cell import CellRun
from softgate.lab.compare.dataset import Dataset
from softgate.lab.compare.training import make_optimizer, set_up, step_loss
from softgate.lab.compare.variants import Variant
from softgate.lab.memory import peak_bytes
from softgate.lab.timing import interleaved

__all__ = ["measure_cost"]

#: Rounds in which every variant has its turn, and the least time they go on for, in seconds.
_TURNS, _SECONDS = 15, 3.0


def measure_cost(run: CellRun, data: Dataset) -> dict[str, Any]:
    """Time and memory of whole updates: forward, backward, optimizer.

    Returns:
        ``seconds:LABEL``, the median turn; ``fastest:LABEL``; ``ratio:LABEL``, over the baseline; ``bytes:LABEL``, the
        peak of what a step allocates above weights and optimizer state.
    """
    variants = [Variant(**each) for each in run.config["variants"]]
    steps = {variant.label: _step(run, data, variant) for variant in variants}
    figures: dict[str, Any] = {}
    for label, step in steps.items():
        step()
        figures[f"bytes:{label}"] = peak_bytes(step, run.device)
    timings = interleaved(steps, turns=_TURNS, seconds=_SECONDS)
    baseline = timings[variants[0].label].median
    for label, timing in timings.items():
        figures |= {f"seconds:{label}": timing.median, f"fastest:{label}": timing.best}
        figures[f"ratio:{label}"] = timing.median / baseline
    return figures


def _step(run: CellRun, data: Dataset, variant: Variant) -> Callable[[], None]:
    """One update on the first batch at a learning rate of 0, so that every turn does the same."""
    setup = set_up(run.config, data, run.seed, variant)
    model, loss = setup.model.to(run.device).train(), step_loss(setup.method.loss)
    optimizer = make_optimizer(model, 0.0)(list(model.parameters()))
    inputs, targets = (tensor.to(run.device) for tensor in setup.task.batch(0))

    def step() -> None:
        optimizer.zero_grad()
        loss(model, (inputs, targets)).backward()
        optimizer.step()
        if run.device != "cpu":
            torch.cuda.synchronize()

    return step
