"""A training small enough for tests, in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.training import TrainConfig


def make(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, 3))


def batches(step: int) -> tuple[Tensor, Tensor]:
    rng = seeds.generator(0, "data", step)
    return torch.randn(12, 6, generator=rng), torch.randint(0, 3, (12,), generator=rng)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def a_run(folder: Path, **changes: Any) -> CellRun:
    return CellRun(
        **{"paper": "p", "scale": "smoke", "cell": "c", "config": {}, "seed": 0, "folder": folder, **changes}
    )


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 10, "lr": 0.01, **changes})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
