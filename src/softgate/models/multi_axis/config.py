"""Sizes and parts of MAXIM, and the published variants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from softgate._checks import check_sizes
from softgate.errors import bad_type, bad_value
from softgate.models.multi_axis.mixing import Size, check_size

__all__ = ["MAXIM_CONFIGS", "MAXIMConfig"]


@dataclass(frozen=True)
class MAXIMConfig:
    """Sizes and parts of a :class:`softgate.models.MAXIM`.

    Attributes:
        features: channels at the size of the image; level i has ``features * 2**i``.
        depth: levels of the U-Net, each of half the sides of the one before.
        stages: U-Nets one after the other.
        groups: pairs of a multi-axis gated MLP and a channel attention block in every encoder, decoder and bottleneck.
        bottleneck_blocks: bottlenecks below the last level.
        num_supervision_scales: levels with an input image and an output.
        high_res_levels: levels, from the finest, that take ``block_size`` and ``grid_size``; the others and the
            bottleneck take ``low_block_size`` and ``low_grid_size``.
        block_size: rows and columns of a window.
        grid_size: rows and columns of the grid.
        low_block_size: the same at low resolution.
        low_grid_size: the same at low resolution; used only without ``strict_reference``.
        expansion: of the multi-axis gated MLPs.
        reduction: of the channel attention.
        in_channels: of the image.
        out_channels: of the results; the image is added to them if it has as many channels.
        global_mlp: with multi-axis gated MLPs.
        cross_gating: with cross-gating blocks on skip connections and where stages meet.
        always_residual: add the image to the results between stages whatever their number of channels.
        strict_reference: as the authors' code in three points: the grid at low resolution is ``low_block_size``,
            encoders of later stages have cross-gating blocks even without ``cross_gating``, and decoders have
            expansion 2. False takes the sizes and switches at their word.
        checkpoint: while training, compute the inside of multi-axis gated MLPs again instead of keeping it.
    """

    features: int = 32
    depth: int = 3
    stages: int = 1
    groups: int = 2
    bottleneck_blocks: int = 2
    num_supervision_scales: int = 3
    high_res_levels: int = 2
    block_size: Size = (16, 16)
    grid_size: Size = (16, 16)
    low_block_size: Size = (8, 8)
    low_grid_size: Size = (8, 8)
    expansion: int = 2
    reduction: int = 4
    in_channels: int = 3
    out_channels: int = 3
    global_mlp: bool = True
    cross_gating: bool = True
    always_residual: bool = False
    strict_reference: bool = True
    checkpoint: bool = False

    def __post_init__(self) -> None:
        names = ("features", "depth", "stages", "groups", "bottleneck_blocks", "num_supervision_scales")
        check_sizes(**{name: getattr(self, name) for name in (*names, "expansion", "reduction")})
        check_sizes(in_channels=self.in_channels, out_channels=self.out_channels)
        for name in ("block_size", "grid_size", "low_block_size", "low_grid_size"):
            object.__setattr__(self, name, check_size(name, getattr(self, name)))
        for name in ("global_mlp", "cross_gating", "always_residual", "strict_reference", "checkpoint"):
            if not isinstance(getattr(self, name), bool):
                bad_type(name, getattr(self, name), "a bool")
        if isinstance(self.high_res_levels, bool) or not isinstance(self.high_res_levels, int):
            bad_type("high_res_levels", self.high_res_levels, "an int of at least 0")
        if self.high_res_levels < 0:
            bad_value("high_res_levels", self.high_res_levels, "an int of at least 0")
        if self.num_supervision_scales > self.depth:
            bad_value("num_supervision_scales", self.num_supervision_scales, f"at most depth, {self.depth}")

    def sizes(self, level: int) -> tuple[Size, Size]:
        """Block size and grid size at ``level``; the bottleneck is at level ``depth``."""
        if level < min(self.high_res_levels, self.depth):
            return self.block_size, self.grid_size
        return self.low_block_size, self.low_block_size if self.strict_reference else self.low_grid_size

    @property
    def size_multiple(self) -> int:
        """Sides of images must be multiples of it."""
        sides = (2**level * side for level in range(self.depth + 1) for size in self.sizes(level) for side in size)
        return math.lcm(*sides)


#: The published sizes, with images and outputs at three scales.
MAXIM_CONFIGS: dict[str, MAXIMConfig] = {
    f"{letter}-{stages}": MAXIMConfig(features=features, stages=stages)
    for letter, features in (("S", 32), ("M", 64))
    for stages in (1, 2, 3)
}
