"""Residual networks for small images, from three blocks to WRN-28-10."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import ArgumentValueError, bad_type, bad_value

__all__ = ["ResNet", "ResNetConfig"]


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a :class:`ResNet`.

    Attributes:
        channels: of the images.
        num_classes: outputs.
        stages: (width, blocks) of each stage; every stage but the first halves the resolution. WRN-28-10 is
            ``((160, 4), (320, 4), (640, 4))``, a ResNet-34 ``((64, 3), (128, 4), (256, 6), (512, 3))``.
        stem_stride: stride of the first convolution; 2 makes a network four times as fast.
    """

    channels: int = 3
    num_classes: int = 10
    stages: tuple[tuple[int, int], ...] = ((16, 1), (32, 1), (64, 1))
    stem_stride: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "num_classes", "stem_stride"):
            _check_count(name, getattr(self, name))
        if not isinstance(self.stages, tuple) or not all(isinstance(s, tuple) and len(s) == 2 for s in self.stages):
            bad_type("stages", self.stages, "a tuple of pairs (width, blocks)")
        if not self.stages:
            raise ArgumentValueError("stages must hold at least one pair (width, blocks)")
        for stage in self.stages:
            for value in stage:
                _check_count("stages", value)


class ResNet(nn.Module):
    """Pre-activation residual network: two 3×3 convolutions with batch normalisation a block, then global pooling.

    Args:
        config: sizes.

    Shapes: images (B, channels, H, W) -> logits (B, num_classes).

    Example:
        >>> import torch
        >>> ResNet(ResNetConfig(channels=1))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source: He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027, fig. 1b.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.stages[0][0]
        self.stem = nn.Conv2d(config.channels, width, 3, config.stem_stride, 1, bias=False)
        blocks: list[nn.Module] = []
        for index, (wanted, count) in enumerate(config.stages):
            for place in range(count):
                blocks.append(_Block(width, wanted, stride=2 if index and place == 0 else 1))
                width = wanted
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, config.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of ``images``."""
        x = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.head(x.mean((-2, -1)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == width
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        branch: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return kept + branch


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        bad_type(name, value, "positive ints")
    if value < 1:
        bad_value(name, value, "at least 1")
