"""The networks that get exits in the reproduction, and gates that let out given shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softgate.dynamic import EarlyExit, measure_costs
from softgate.errors import MissingExtraError, check_choice
from softgate.lab.data.store import data_folders
from softgate.lab.tasks.exit_images import ExitImages

__all__ = ["PlannedGate", "cnn", "mlp", "network", "plan_gates"]


class _ResidualBlock(nn.Module):
    """Two linear layers around a ReLU, added to the input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (N, width) plus what the block adds."""
        found: Tensor = x + self.inner(x)
        return found


def mlp(inputs: int, width: int, blocks: int, classes: int) -> tuple[nn.Sequential, list[int]]:
    """A residual MLP and the places of its exits: after every block but the last."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), _ResidualBlock(width, 4 * width))
    rest = [_ResidualBlock(width, 4 * width) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest, nn.Linear(width, classes)), list(range(1, blocks))


def cnn(channels: int, width: int, classes: int) -> tuple[nn.Sequential, list[int]]:
    """Six convolutional blocks whose resolution halves at every other one, and the places of five exits."""

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    w = width
    blocks = [
        [*conv(channels, w), *conv(w, w)],
        [nn.MaxPool2d(2), *conv(w, 2 * w)],
        conv(2 * w, 2 * w),
        [nn.MaxPool2d(2), *conv(2 * w, 4 * w)],
        conv(4 * w, 4 * w),
        [nn.MaxPool2d(2), *conv(4 * w, 8 * w)],
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, classes)]
    return nn.Sequential(*(nn.Sequential(*block) for block in blocks), *head), list(range(1, len(blocks)))


def network(config: Mapping[str, Any], task: ExitImages) -> tuple[nn.Module, Callable[[], EarlyExit]]:
    """The classifier that ``config`` describes, and what puts fresh exits into it once it is trained.

    Args:
        config: ``network``: ``"mlp"``, ``"cnn"`` or ``"timm"``; ``width`` and ``blocks``, or ``model``, the name of a
            vision transformer of timm, and ``weights``, a safetensors file in a data folder.
        task: images and classes.

    Raises:
        MissingExtraError: timm is not installed.
    """
    check_choice("network", config["network"], ("mlp", "cnn", "timm"))
    example = task.parts["train"][0][:1]
    if config["network"] == "timm":
        model = _timm(config, task)

        def with_exits() -> EarlyExit:
            exits = EarlyExit.from_timm_vit(model)
            measure_costs(exits, example.to(next(model.parameters()).device))
            return exits

        return model, with_exits
    if config["network"] == "mlp":
        seq, cuts = mlp(example[0].numel(), config["width"], config["blocks"], task.classes)
    else:
        seq, cuts = cnn(task.channels, config["width"], task.classes)
    return seq, lambda: EarlyExit.from_sequential(seq, cuts, example.to(next(seq.parameters()).device))


def _timm(config: Mapping[str, Any], task: ExitImages) -> nn.Module:
    from softgate.integrations import torchvision_cpu

    torchvision_cpu.repair()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingExtraError("timm", "vision", "this scale") from error
    side = task.parts["train"][0].shape[-1]
    model: nn.Module = timm.create_model(config["model"], num_classes=task.classes, img_size=side)
    if config["weights"] is not None:
        from safetensors.torch import load_file

        places = [folder / config["weights"] for folder in data_folders()]
        path = next((place for place in places if place.is_file()), Path(config["weights"]))
        own = model.state_dict()
        fitting = {name: w for name, w in load_file(path).items() if name in own and own[name].shape == w.shape}
        model.load_state_dict(fitting, strict=False)
    return model


class PlannedGate(nn.Module):
    """A gate that opens where the largest probability is at least a limit: its work is that of a learned one."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.register_buffer("limit", torch.tensor(limit))

    def forward(self, logits: Tensor) -> Tensor:
        """Logit of leaving, (N,), for class logits (N, C)."""
        return 1e6 * (logits.softmax(-1).amax(-1) - self.limit) + 0.5  # type: ignore[operator]


@torch.no_grad()
def plan_gates(model: EarlyExit, x: Tensor, shares: Sequence[float]) -> None:
    """Give ``model`` gates through which these ``shares`` of the samples ``x`` leave, exit by exit."""
    out = model.eval()(x)
    inside = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for place, share in enumerate(shares):
        sure = out.logits[place].softmax(-1).amax(-1)
        count = round(share * len(x))
        limit = float(sure[inside].sort(descending=True).values[count - 1]) if count else 2.0
        model.gates[place] = PlannedGate(limit).to(x.device)
        inside &= sure < limit
