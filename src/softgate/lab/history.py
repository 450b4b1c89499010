"""The figures of a training run, step by step, kept on the device so that recording one never waits for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError
from softgate.lab.distributed import World

#: Keys of the exported history that a figure may not take.
RESERVED = ("step", "loss", "lr", "eval_step", "total")


class History:
    """Per-step figures (the loss among them) and the figures of each evaluation.

    Each process records its own share of a figure; :meth:`settle` adds the shares up over all processes, in bulk.

    Args:
        steps: length of the run.
        world: the processes whose shares are added up.
    """

    def __init__(self, steps: int, world: World) -> None:
        self._steps = steps
        self._world = world
        self._curves = {"loss": self._blank()}
        self._settled = 0
        self._evaluations: dict[str, list[float]] = {"eval_step": []}

    def _blank(self) -> Tensor:
        # float64 holds the losses of every precision exactly; MPS lacks it
        device = self._world.device if self._world.device.type in ("cpu", "cuda") else torch.device("cpu")
        return torch.full((self._steps,), torch.nan, dtype=torch.float64, device=device)

    def record(self, step: int, loss: Tensor, figures: Mapping[str, Tensor | float]) -> None:
        """Store what update ``step`` (from 0) gave."""
        self._curves["loss"][step] = loss
        for name, value in figures.items():
            if name not in self._curves:
                self._check(name, {*RESERVED, *self._evaluations})
                self._curves[name] = self._blank()
            self._curves[name][step] = value.detach() if isinstance(value, Tensor) else value

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Store an evaluation made after ``step`` updates."""
        known = set(self._evaluations) - {"eval_step"}
        if known and known != set(figures):
            names = ", ".join(sorted(known ^ set(figures)))
            raise ArgumentValueError(f"evaluate must return the same figures every time, it differed in {names}")
        for name, value in figures.items():
            self._check(name, {*RESERVED, *self._curves})
            self._evaluations.setdefault(name, []).append(value)
        self._evaluations["eval_step"].append(step)

    @staticmethod
    def _check(name: str, taken: set[str]) -> None:
        if name in taken:
            raise ArgumentValueError(f"the figure {name!r} is taken ({', '.join(sorted(taken))}); give it another name")

    def settle(self, step: int) -> None:
        """Add up over all processes what was recorded before ``step``; all processes must call it."""
        if self._world.size > 1 and step > self._settled:
            rows = slice(self._settled, step)
            for name in sorted(self._curves):
                curve = self._curves[name]
                # summed in rank order: an all-reduce's order depends on how many rows it happens to carry
                curve[rows] = self._world.gather(curve[rows]).sum(0).to(curve.device)
        self._settled = step

    def last(self, step: int) -> dict[str, float]:
        """The settled figures of the update before ``step``."""
        return {name: float(curve[step - 1]) for name, curve in self._curves.items()}

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after ``step`` updates keeps; call :meth:`settle` before."""
        return {
            "curves": {name: curve[:step] for name, curve in self._curves.items()},
            "evaluations": self._evaluations,
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        for name, values in state["curves"].items():
            self._curves[name] = self._blank()
            self._curves[name][:step] = values
        self._evaluations = {name: list(values) for name, values in state["evaluations"].items()}
        self._settled = step

    def export(self, step: int, lr: Callable[[int], float]) -> dict[str, list[float]]:
        """Everything as plain lists; ``step`` counts finished updates: 1, 2, and so on."""
        curves = {name: curve[:step].tolist() for name, curve in self._curves.items()}
        rates = [lr(index) for index in range(step)]
        return {"step": [float(i + 1) for i in range(step)], "lr": rates, **curves, **self._evaluations}
