"""One stage of MAXIM: a U-Net whose skip connections see all levels and gate each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from softgate.models.multi_axis.config import MAXIMConfig
from softgate.models.multi_axis.cross_gating import CrossGatingBlock
from softgate.models.multi_axis.layers import SupervisedAttention, first, last, lecun_normal
from softgate.models.multi_axis.unet import Bottleneck, Decoder, Encoder, ResizedProjection

__all__ = ["MAXIMStage"]


@dataclass(frozen=True)
class Carried:
    """What a stage hands to the next, one map a level: encoders plus decoders, and features of supervised attention."""

    maps: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


class _PlainFusion(nn.Module):
    """What stands in for a cross-gating block on a skip connection in a network without."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.project, self.conv = nn.Linear(inputs, channels), nn.Conv2d(channels, channels, 3, padding=1)
        lecun_normal(self.project, self.conv)

    def forward(self, signal: Tensor) -> Tensor:
        return self.conv(first(self.project(last(signal))))


class MAXIMStage(nn.Module):
    """One U-Net of :class:`softgate.models.MAXIM`.

    Args:
        config: of the network.
        index: of the stage; later ones are cross-gated by the stage before, the last one gives no features.

    Shapes: images at ``num_supervision_scales`` sizes, fine to coarse -> images of the same sizes, coarse to fine, and
    what the next stage takes (None from the last one).

    Paper: MAXIM, arXiv 2201.02973, section 3.1, figure 2.
    """

    def __init__(self, config: MAXIMConfig, index: int) -> None:
        super().__init__()
        self.config, self.is_last = config, index == config.stages - 1
        f, depth, scales = config.features, config.depth, config.num_supervision_scales
        widths = [f * 2**level for level in range(depth)]
        self.image_convs = nn.ModuleList(nn.Conv2d(config.in_channels, w, 3, padding=1) for w in widths[:scales])
        self.fusions = nn.ModuleList(self._fusion(level) for level in range(scales if index else 0))
        crossed = index > 0 and (config.cross_gating or config.strict_reference)
        above = [widths[0], *widths[:-1]]
        self.encoders = nn.ModuleList(
            Encoder(config, above[i] + (widths[i] if i < scales else 0), i, crossed) for i in range(depth)
        )
        self.bottlenecks = nn.ModuleList(Bottleneck(config, widths[-1]) for _ in range(config.bottleneck_blocks))
        # lists by level, from the coarsest, of the projections of all levels
        self.bridges = nn.ModuleList(self._projections(i, range(depth)) for i in reversed(range(depth)))
        self.gates = nn.ModuleList(self._gate(level) for level in reversed(range(depth)))
        self.skips = nn.ModuleList(self._projections(i, reversed(range(depth))) for i in reversed(range(depth)))
        self.decoders = nn.ModuleList(Decoder(config, widths[min(i + 1, depth - 1)], i) for i in reversed(range(depth)))
        self.outputs = nn.ModuleList(self._output(level) for level in reversed(range(scales)))
        lecun_normal(*(conv for conv in self.image_convs if isinstance(conv, nn.Conv2d)))

    def forward(self, images: Sequence[Tensor], carried: Carried | None) -> tuple[list[Tensor], Carried | None]:
        """Restored images, coarse to fine, and what the next stage takes."""
        bridges, x = self.encode(self.inputs(images, carried), carried)
        for bottleneck in self.bottlenecks:
            x = bottleneck(x)
        skips = self.gated(bridges, x)
        found, decoded, features = [], [], []
        for place, decoder in enumerate(self.decoders):
            x = decoder(x, _resized(self.skips[place], skips))
            decoded.append(x)
            level = self.config.depth - 1 - place
            if level < len(images):
                head = self.outputs[len(images) - 1 - level]
                if self.is_last:
                    found.append(head(x) + images[level] if self.residual else head(x))
                else:
                    kept, image = head(x, images[level])
                    features.append(kept)
                    found.append(image)
        if self.is_last:
            return found, None
        sums = tuple(bridge + other for bridge, other in zip(bridges, decoded[::-1], strict=True))
        return found, Carried(sums, tuple(features[::-1]))

    @property
    def residual(self) -> bool:
        """Whether the image is added to the results of the last stage."""
        return self.config.in_channels == self.config.out_channels

    def inputs(self, images: Sequence[Tensor], carried: Carried | None) -> list[Tensor]:
        """Features of the image at every scale, fused with those of the stage before."""
        found = [conv(image) for conv, image in zip(self.image_convs, images, strict=True)]
        if carried is None:
            return found
        pairs = zip(self.fusions, found, carried.features, strict=True)
        if self.config.cross_gating:
            return [fusion(x, before)[0] for fusion, x, before in pairs]
        return [first(fusion(last(torch.cat((x, before), 1)))) for fusion, x, before in pairs]

    def encode(self, inputs: Sequence[Tensor], carried: Carried | None) -> tuple[list[Tensor], Tensor]:
        """The bridges of all levels, and the map below the last one."""
        x, bridges = inputs[0], []
        for level, encoder in enumerate(self.encoders):
            if level < len(inputs):  # at the finest level the features of the image enter twice
                x = torch.cat((x, inputs[level]), 1)
            x, bridge = encoder(x, None if carried is None else carried.maps[level])
            bridges.append(bridge)
        return bridges, x

    def gated(self, bridges: Sequence[Tensor], gate: Tensor) -> list[Tensor]:
        """The bridges of all levels merged at each one and gated from below; coarse to fine."""
        found = []
        for projections, block in zip(self.bridges, self.gates, strict=True):
            signal = _resized(projections, bridges)
            if self.config.cross_gating:
                signal, gate = block(signal, gate)
            else:
                signal = block(signal)
            found.append(signal)
        return found

    def _width(self, level: int) -> int:
        return self.config.features * 2**level

    def _projections(self, level: int, sources: Iterable[int]) -> nn.ModuleList:
        return nn.ModuleList(ResizedProjection(self._width(j), self._width(level), j - level) for j in sources)

    def _fusion(self, level: int) -> nn.Module:
        width = self._width(level)
        if self.config.cross_gating:
            block, grid = self.config.sizes(level)
            return CrossGatingBlock(width, block=block, grid=grid)
        layer = nn.Linear(2 * width, width)
        lecun_normal(layer)
        return layer

    def _gate(self, level: int) -> nn.Module:
        width, depth = self._width(level), self.config.depth
        if not self.config.cross_gating:
            return _PlainFusion(depth * width, width)
        block, grid = self.config.sizes(level)
        below = self._width(min(level + 1, depth - 1))
        return CrossGatingBlock(width, depth * width, below, block=block, grid=grid, upsample=True)

    def _output(self, level: int) -> nn.Module:
        width, config = self._width(level), self.config
        if not self.is_last:
            return SupervisedAttention(
                width, config.in_channels, config.out_channels, always_residual=config.always_residual
            )
        layer = nn.Conv2d(width, config.out_channels, 3, padding=1)
        lecun_normal(layer)
        return layer


def _resized(projections: nn.Module, maps: Sequence[Tensor]) -> Tensor:
    """All maps brought to one size and width, side by side."""
    assert isinstance(projections, nn.ModuleList)
    return torch.cat([project(x) for project, x in zip(projections, maps, strict=True)], 1)
