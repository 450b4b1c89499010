"""Training the one-layer transformer of in-context learning, and looking at what it predicts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from softgate.diagnostics.icl import AttentionICL
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.snapshots import Snapshots
from softgate.lab.training import TrainConfig, fit

__all__ = ["Prompts", "Starts", "Trained", "averaged", "draw", "frame_steps", "predict", "train_starts"]

#: Draws tokens (B, L + 1, D) and targets (B, N).
Prompts = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def draw(prompts: Prompts, size: int, seed: int, *stream: int | str) -> tuple[Tensor, Tensor]:
    """``size`` prompts; the same for the same ``seed`` and ``stream``."""
    return prompts(size, seeds.generator(seed, "prompts", *stream))


class Starts(nn.Module):
    """Layers of one shape with starts of their own, run side by side: little more work than one.

    Args:
        layers: at least one; copied.
    """

    def __init__(self, layers: Sequence[AttentionICL]) -> None:
        super().__init__()
        self.parts = nn.ParameterDict(torch.func.stack_module_state(list(layers))[0])
        self._shape = [copy.deepcopy(layers[0])]  # in a list, so that its parameters are not trained

    def forward(self, tokens: Tensor) -> Tensor:
        """Predictions of each, (R, B, N)."""

        def one(parts: dict[str, Tensor]) -> Tensor:
            return functional_call(self._shape[0], parts, (tokens,))

        return torch.vmap(one)(dict(self.parts.items()))

    def layer(self, index: int) -> AttentionICL:
        """A copy of one of the layers."""
        found = copy.deepcopy(self._shape[0])
        found.load_state_dict({name: value[index].detach().cpu() for name, value in self.parts.items()})
        return found


@dataclass(frozen=True)
class Trained:
    """What :func:`train_starts` found.

    Attributes:
        layers: where each start ended.
        best: number of the one with the lowest training loss.
        losses: the best's loss at every step.
        ends: mean training loss of each start over the last twentieth of the steps.
        figures: the best's snapshots, as figures.
    """

    layers: list[AttentionICL]
    best: int
    losses: list[float]
    ends: list[float]
    figures: dict[str, list[Any]]

    @property
    def layer(self) -> AttentionICL:
        """The best."""
        return self.layers[self.best]


def train_starts(
    run: CellRun,
    layers: Sequence[AttentionICL],
    prompts: Prompts,
    read: Callable[[AttentionICL], Mapping[str, Tensor]] | None = None,
    frames: int = 7,
) -> Trained:
    """Train layers from several starts on the same fresh prompts, with Adam and a cosine to 0; keep the best.

    The loss is the squared error summed over tasks.

    Args:
        run: its configuration holds ``steps``, ``lr`` and ``batch``.
        layers: one per start.
        prompts: where batches come from.
        read: matrices of a layer to be recorded at :func:`frame_steps`.
        frames: how often.
    """
    config, model = run.config, Starts(layers)
    reader = read or (lambda layer: {})
    snapshots = Snapshots(
        lambda: {f"{r}/{name}": m for r in range(len(layers)) for name, m in reader(model.layer(r)).items()},
        frame_steps(config["steps"], frames) if read else (),
    )

    def batches(step: int) -> tuple[Tensor, Tensor]:
        snapshots.look(step)  # the state before the update
        return draw(prompts, config["batch"], run.seed, "train", step)

    def step_loss(starts: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, target = batch
        each = (starts(tokens) - target).square().sum(-1).mean(-1)
        return each.sum(), {f"start_{r}": loss for r, loss in enumerate(each.detach())}

    training = TrainConfig(steps=config["steps"], lr=config["lr"], betas=(0.9, 0.999), min_lr_ratio=0.0, clip=None)
    curves = fit(model, step_loss, training, batches=batches, run=run, state={"snapshots": snapshots})
    snapshots.look(config["steps"])
    last = max(1, config["steps"] // 20)
    ends = [sum(curves[f"start_{r}"][-last:]) / last for r in range(len(layers))]
    best = ends.index(min(ends))
    seen = snapshots.figures()
    own = {name.partition("/")[2]: value for name, value in seen.items() if name.startswith(f"{best}/")}
    frames_of_best = {"frame_step": seen["frame_step"], **own} if own else {}
    ended = [model.layer(r) for r in range(len(layers))]
    return Trained(ended, best, curves[f"start_{best}"], ends, frames_of_best)


def frame_steps(steps: int, frames: int = 7) -> list[int]:
    """Steps at which a pattern's emergence is shown: the start, then each twice as far as the one before, the end."""
    return [0, *(round(steps / 2**k) for k in reversed(range(frames - 1)))]


@torch.no_grad()
def predict(model: AttentionICL, tokens: Tensor, chunk: int = 2000) -> Tensor:
    """Predictions (B, N), ``chunk`` prompts at a time."""
    return torch.cat([model(part) for part in tokens.split(chunk)])


def averaged(curve: Sequence[float], points: int = 100) -> tuple[list[float], list[float]]:
    """A noisy curve over steps as means of consecutive stretches: the steps where they end, and the means."""
    width = max(1, math.ceil(len(curve) / points))
    starts = range(0, len(curve), width)
    stretches = [curve[start : start + width] for start in starts]
    ends = [float(start + len(part)) for start, part in zip(starts, stretches, strict=True)]
    return ends, [sum(part) / len(part) for part in stretches]
