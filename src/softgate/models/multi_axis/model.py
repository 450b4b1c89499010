"""MAXIM: restoring images with a U-Net of gated MLPs that mix along two axes at once."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice, did_you_mean
from softgate.models.multi_axis.config import MAXIM_CONFIGS, MAXIMConfig
from softgate.models.multi_axis.stage import MAXIMStage

__all__ = ["MAXIM"]


class MAXIM(nn.Module):
    """Image restoration: denoising, deblurring, deraining, dehazing, enhancement.

    Stages of U-Nets whose blocks mix pixels inside windows and across a grid over the whole image, with skip
    connections that gate each other. Time and memory are linear in the number of pixels, and every layer sees the
    whole image.

    Args:
        config: the published sizes ``"S-1"``, ``"S-2"``, ``"S-3"``, ``"M-1"``, ``"M-2"``, ``"M-3"``, or sizes of your
            own.
        **overrides: fields of :class:`softgate.models.MAXIMConfig` that differ from it.

    Shapes: images (B, in_channels, H, W), H and W multiples of ``size_multiple`` (64 for the published sizes) ->
    (B, out_channels, H, W); :func:`softgate.models.restore` takes images of any size. The values are meant to be in
    [0, 1]; nothing is clipped.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed, or images do not fit.

    Example:
        >>> model = MAXIM("S-1", features=8, groups=1, bottleneck_blocks=1)
        >>> model(torch.rand(1, 3, 64, 128)).shape
        torch.Size([1, 3, 64, 128])

    Paper: MAXIM, arXiv 2201.02973; details as in the authors' code.
    """

    def __init__(self, config: MAXIMConfig | str = "S-1", **overrides: Any) -> None:
        super().__init__()
        if isinstance(config, str):
            check_choice("config", config, tuple(MAXIM_CONFIGS))
            config = MAXIM_CONFIGS[config]
        if not isinstance(config, MAXIMConfig):
            bad_type("config", config, "a MAXIMConfig or the name of one")
        known = [field.name for field in dataclasses.fields(MAXIMConfig)]
        for name in overrides:
            if name not in known:
                raise ArgumentTypeError(f"MAXIM has no argument {name!r}{did_you_mean(name, known)}")
        self.config = dataclasses.replace(config, **overrides)
        self.stages = nn.ModuleList(MAXIMStage(self.config, index) for index in range(self.config.stages))

    @property
    def size_multiple(self) -> int:
        """Sides of images must be multiples of it."""
        return self.config.size_multiple

    @overload
    def forward(self, images: Tensor, return_all: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, return_all: Literal[True]) -> list[list[Tensor]]: ...

    def forward(self, images: Tensor, return_all: bool = False) -> Tensor | list[list[Tensor]]:
        """The restored images, or with ``return_all`` those of every stage at every scale, coarse to fine."""
        self._check(images)
        images = images.contiguous(memory_format=torch.channels_last)
        scales = [images]
        for level in range(1, self.config.num_supervision_scales):
            size = (images.shape[2] >> level, images.shape[3] >> level)
            scales.append(F.interpolate(images, size, mode="nearest-exact"))
        found, carried = [], None
        for stage in self.stages:
            outputs, carried = stage(scales, carried)
            found.append(outputs)
        return found if return_all else found[-1][-1]

    def _check(self, images: Tensor) -> None:
        check_float_tensor("images", images)
        channels, multiple = self.config.in_channels, self.size_multiple
        if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
            bad_value("images", tuple(images.shape), f"of shape (B, {channels}, H, W)")
        if images.shape[2] % multiple or images.shape[3] % multiple:
            raise ArgumentValueError(
                f"images must have sides that are multiples of {multiple}, got {tuple(images.shape[2:])}; "
                "softgate.models.restore pads and crops images of any size"
            )
