"""The convolutional networks whose filters become dynamic in the reproduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from softgate.errors import check_choice

__all__ = ["filter_network"]

#: Widths of VGG-16; 0 is a pool.
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def filter_network(config: Mapping[str, Any], channels: int, classes: int) -> nn.Module:
    """A classifier without predictors.

    Args:
        config: ``network``: ``"stack"`` with ``widths`` of its 3×3 convolutions, 0 for a pool; ``"resnet"`` with
            ``blocks`` in each of three stages (9 make ResNet-56); ``"mobilenet"``, the first version for small images.
        channels: of the images.
        classes: to tell apart.
    """
    check_choice("network", config["network"], ("stack", "resnet", "mobilenet"))
    if config["network"] == "stack":
        return _stack(config["widths"], channels, classes)
    return (
        _resnet(config["blocks"], channels, classes) if config["network"] == "resnet" else _mobilenet(channels, classes)
    )


def _conv(inputs: int, outputs: int, *, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def _stack(widths: Sequence[int], channels: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += _conv(channels, width) if width else [nn.MaxPool2d(2)]
        channels = width or channels
    return nn.Sequential(*layers, *_head(channels, classes))


class _Block(nn.Module):
    """Two convolutions around which the input is handed on, thinned out and filled up with zeros where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        out: Tensor = self.relu2(y + x)
        return out


def _resnet(blocks: int, channels: int, classes: int) -> nn.Sequential:
    layers, width = _conv(channels, 16), 16
    for stage in range(3):
        for place in range(blocks):
            wider = 16 * 2**stage
            layers.append(_Block(width, wider, 2 if stage and not place else 1))
            width = wider
    return nn.Sequential(*layers, *_head(width, classes))


def _mobilenet(channels: int, classes: int) -> nn.Sequential:
    layers, width = _conv(channels, 32), 32
    for wider, stride in _MOBILENET:
        layers += [*_conv(width, width, stride=stride, groups=width), *_conv(width, wider, size=1)]
        width = wider
    return nn.Sequential(*layers, *_head(width, classes))
