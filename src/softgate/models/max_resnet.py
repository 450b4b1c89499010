"""Max-ResNet: a spiking residual network whose maps are halved by max-pooling in place of strides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate.activations.spiking import LIF
from softgate.errors import ArgumentValueError, bad_type, bad_value, check_choice
from softgate.models._spiking_convolution import ConvNorm, per_step, plane
from softgate.models.max_former import with_steps

__all__ = ["MaxResNet", "MaxResNetConfig", "max_resnet18"]

_STEM = 64
_HALVING = ("max", "stride")


@dataclass(frozen=True)
class MaxResNetConfig:
    """Sizes of a :class:`MaxResNet`; the defaults are Max-ResNet-18 with 12.5M parameters.

    Attributes:
        dims: channels of each stage.
        depths: blocks of each stage; the paper also has (2, 2, 2, 2).
        halving: how stages but the first halve the map: ``"max"``-pooling, or a ``"stride"`` as in MS-ResNet.
        steps: how often an image is shown; events bring their own number of steps.
        channels: of the images.
        num_classes: outputs.
    """

    dims: tuple[int, ...] = (128, 256, 512)
    depths: tuple[int, ...] = (3, 3, 2)
    halving: str = "max"
    steps: int = 4
    channels: int = 3
    num_classes: int = 10

    def __post_init__(self) -> None:
        check_sizes(steps=self.steps, channels=self.channels, num_classes=self.num_classes)
        check_choice("halving", self.halving, _HALVING)
        for name in ("dims", "depths"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                bad_type(name, value, "a tuple with an entry for each stage")
            if not value or len(value) != len(self.dims):
                bad_value(name, value, f"of {len(self.dims)} entries, one for each stage, and of at least one")
            for size in value:
                check_sizes(**{name: size})


class MaxResNet(nn.Module):
    """Residual network of LIF neurons before every convolution; what is added up is the membrane.

    The paper's figure pools once in every layer; this is the released code, which pools in the first block of the
    second and third stage only.

    Args:
        config: sizes; Max-ResNet-18 if None.
        **options: fields of :class:`MaxResNetConfig` that replace those of ``config``.

    Shapes: images (B, channels, H, W), shown ``steps`` times, or events (B, T, channels, H, W) -> logits
        (B, num_classes).

    Raises:
        ArgumentTypeError: an option has the wrong type.
        ArgumentValueError: sizes that do not fit, or a height or width that the strides do not divide.

    Example:
        >>> import torch
        >>> MaxResNet(dims=(8, 16), depths=(1, 1), steps=2)(torch.randn(3, 3, 8, 8)).shape
        torch.Size([3, 10])

    Paper: Spiking Neural Networks Need High Frequency Information, arXiv 2505.18608, Max-ResNet and table 5.
    """

    def __init__(self, config: MaxResNetConfig | None = None, **options: Any) -> None:
        super().__init__()
        self.config = config = replace(config or MaxResNetConfig(), **options)
        self.stem = plane(config.channels, _STEM, 3)
        blocks: list[nn.Module] = []
        in_dim = _STEM
        for stage, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
            for block in range(depth):
                halving = config.halving if stage and not block else ""
                blocks.append(_Block(in_dim, dim, halving))
                in_dim = dim
        self.blocks = nn.Sequential(*blocks)
        self.neurons = LIF()
        self.head = nn.Linear(in_dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        x = with_steps(images, self.config.channels, self.config.steps)
        stride = 2 ** (len(self.config.dims) - 1)
        if x.shape[3] % stride or x.shape[4] % stride or 0 in x.shape[3:]:
            raise ArgumentValueError(
                f"images must have a height and width that {stride} divides, got {tuple(images.shape)}"
            )
        spikes = self.neurons(self.blocks(self.stem(x)))
        logits = per_step(self.head, spikes.mean((3, 4))).mean(0)
        return logits

    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())


class _Block(nn.Module):
    """``x + BN(conv(LIF(BN(conv(LIF(x))))))``; where the map is halved, the skip is a convolution of the membrane."""

    def __init__(self, in_dim: int, dim: int, halving: str = "") -> None:
        super().__init__()
        self.neurons1, self.conv1 = LIF(), plane(in_dim, dim, 3, 2 if halving == "stride" else 1)
        self.pool = nn.MaxPool2d(3, 2, 1) if halving == "max" else None
        self.neurons2, self.conv2 = LIF(), plane(dim, dim, 3)
        changed = halving or in_dim != dim
        self.skip: ConvNorm | None = plane(in_dim, dim, 1, 2 if halving else 1) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(self.neurons1(x))
        if self.pool is not None:
            inner = per_step(self.pool, inner)
        inner = self.conv2(self.neurons2(inner))
        output: Tensor = inner + (x if self.skip is None else self.skip(x))
        return output


def max_resnet18(**options: Any) -> MaxResNet:
    """Max-ResNet-18 (12.5M parameters with 10 classes); ``options`` as in :class:`MaxResNetConfig`."""
    return MaxResNet(MaxResNetConfig(**options))
