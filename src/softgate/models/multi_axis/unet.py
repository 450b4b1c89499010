"""Encoder, decoder and bottleneck of one stage of MAXIM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from softgate._math.compress import compute_dtype
from softgate.models.multi_axis.config import MAXIMConfig
from softgate.models.multi_axis.cross_gating import CrossGatingBlock
from softgate.models.multi_axis.gated_mlp import MultiAxisGatedMLP
from softgate.models.multi_axis.layers import RCAB, RDCAB, first, last, lecun_normal

__all__: list[str] = []


class Groups(nn.Module):
    """A projection to C channels, then groups of a gated MLP and channel attention, with one long residual."""

    def __init__(self, config: MAXIMConfig, inputs: int, level: int, expansion: int) -> None:
        super().__init__()
        bottom = level == config.depth
        channels = config.features * 2 ** (level - bottom)
        block, grid = config.sizes(level)
        self.checkpoint = config.checkpoint
        self.project = nn.Linear(inputs, channels)
        count = config.groups if config.global_mlp or bottom else 0
        self.mixers = nn.ModuleList(MultiAxisGatedMLP(channels, block, grid, expansion) for _ in range(count))
        kind = RDCAB if bottom else RCAB
        self.attentions = nn.ModuleList(kind(channels, config.reduction) for _ in range(config.groups))
        lecun_normal(self.project)

    def run(self, x: Tensor) -> Tensor:
        """The projection of ``x`` plus the groups."""
        projected = x = first(self.project(last(x)))
        for index, attention in enumerate(self.attentions):
            if len(self.mixers):
                x = self.mixed(self.mixers[index], x)
            x = attention(x)
        return x + projected

    def mixed(self, mixer: nn.Module, x: Tensor) -> Tensor:
        """``mixer`` of ``x``, kept or computed again in the backward pass."""
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(mixer, x, use_reentrant=False)
        return mixer(x)


class Bottleneck(Groups):
    """Groups at the lowest resolution; they have gated MLPs even in a network without."""

    def __init__(self, config: MAXIMConfig, inputs: int) -> None:
        super().__init__(config, inputs, config.depth, config.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """The map, mixed."""
        return self.run(x)


class Encoder(Groups):
    """Groups at one level, cross-gated by the stage before, and the way down to the next level."""

    def __init__(self, config: MAXIMConfig, inputs: int, level: int, cross: bool) -> None:
        super().__init__(config, inputs, level, config.expansion)
        channels = config.features * 2**level
        block, grid = config.sizes(level)
        self.cross = CrossGatingBlock(channels, block=block, grid=grid) if cross else None
        self.down = nn.Conv2d(channels, channels, 4, 2, 1)
        lecun_normal(self.down)

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map for the next level, and the bridge to the decoder."""
        x = self.run(x)
        if self.cross is not None and before is not None:
            x, _ = self.cross(x, before)
        return self.down(x), x


class Decoder(Groups):
    """A transposed convolution up, then groups on what it gives beside the signals of the skip connections."""

    def __init__(self, config: MAXIMConfig, inputs: int, level: int) -> None:
        channels = config.features * 2**level
        expansion = 2 if config.strict_reference else config.expansion
        super().__init__(config, channels * (1 + config.depth), level, expansion)
        self.up = nn.ConvTranspose2d(inputs, channels, 2, 2)
        lecun_normal(self.up)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        """The map at the level of ``signal``."""
        return self.run(torch.cat((self.up(x), signal), 1))


class ResizedProjection(nn.Module):
    """Bilinear resizing by ``2**shift``, then a projection."""

    def __init__(self, inputs: int, channels: int, shift: int) -> None:
        super().__init__()
        self.project, self.shift = nn.Linear(inputs, channels), shift
        lecun_normal(self.project)

    def forward(self, x: Tensor) -> Tensor:
        """The map at the new size."""
        if self.shift > 0:  # the weights of a pixel add up to one: projecting the smaller map first gives the same
            return resize(first(self.project(last(x))), self.shift)
        return first(self.project(last(resize(x, self.shift))))


def resize(x: Tensor, shift: int) -> Tensor:
    """Bilinear, antialiased where the map shrinks; half-pixel centres."""
    if shift == 0:
        return x
    height, width = ((side << shift) if shift > 0 else (side >> -shift) for side in x.shape[2:])
    wide = x.to(compute_dtype(x.dtype))
    resized = F.interpolate(wide, (height, width), mode="bilinear", align_corners=False, antialias=shift < 0)
    return resized.to(x.dtype)
