"""Features of three scales and a density map from each: what every way of merging them starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value

__all__: list[str] = []

_SCALES = 3


class Experts(NamedTuple):
    """What :class:`DensityExperts` gives.

    Attributes:
        maps: one density map (B, 1, H_i, W_i) per scale, the finest first.
        features: the features that each of them was read from.
        coarse: the encoder's coarsest features, what gates look at.
    """

    maps: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    coarse: Tensor


class DensityExperts(nn.Module):
    """An encoder, a decoder that carries coarse features to finer scales, and a density head at each of three scales.

    Args:
        backbone: images -> feature maps, of which the last three are used; each has half the sides of the one before.
        channels: of these three.
        head_width: hidden channels of the density heads.
    """

    def __init__(self, backbone: nn.Module, channels: Sequence[int], head_width: int = 64) -> None:
        super().__init__()
        if len(channels) != _SCALES:
            bad_value("channels", tuple(channels), "three sizes, of the backbone's last feature maps")
        check_sizes(head_width=head_width, **{f"channels[{i}]": width for i, width in enumerate(channels)})
        fine, middle, coarse = channels
        half = max(1, middle // 2), max(1, fine // 2)
        self.backbone = backbone
        self.coarse = _refine(coarse, 2 * coarse, coarse)
        self.middle = _refine(middle + coarse, middle, half[0])
        self.fine = _refine(fine + half[0], fine, half[1])
        self.widths = (half[1], half[0], coarse)
        self.heads = nn.ModuleList(density_head(width, head_width) for width in self.widths)

    def forward(self, images: Tensor) -> Experts:
        """Density maps of ``images``."""
        x3, x4, x5 = self._pyramid(images)
        f3 = self.coarse(x5)
        f2 = self.middle(torch.cat((x4, _doubled(f3, x4)), 1))
        f1 = self.fine(torch.cat((x3, _doubled(f2, x3)), 1))
        features = (f1, f2, f3)
        return Experts(tuple(head(f) for head, f in zip(self.heads, features, strict=True)), features, x5)

    def _pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.backbone(images)
        if not isinstance(found, list | tuple) or len(found) < _SCALES:
            raise ArgumentTypeError(
                f"backbone must return at least {_SCALES} feature maps, got {type(found).__name__} (for a model of "
                "timm: create_model(..., features_only=True))"
            )
        x3, x4, x5 = found[-_SCALES:]
        for finer, coarser in ((x3, x4), (x4, x5)):
            if finer.shape[-2] != 2 * coarser.shape[-2] or finer.shape[-1] != 2 * coarser.shape[-1]:
                raise ArgumentValueError(
                    "backbone must halve the sides from one of its last three feature maps to the next, got "
                    f"{tuple(finer.shape[-2:])} and {tuple(coarser.shape[-2:])}"
                )
        return x3, x4, x5


def init_normal(module: nn.Module, std: float) -> None:
    """Draw the weights of all convolutions in ``module`` from N(0, std²) and set their biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def padded(images: Tensor, stride: int) -> Tensor:
    """``images`` mirrored at the right and lower edge up to the next multiple of ``stride``."""
    check_float_tensor("images", images)
    if images.ndim != 4:
        bad_value("images", tuple(images.shape), "of shape (B, channels, H, W)")
    down, right = -images.shape[-2] % stride, -images.shape[-1] % stride
    if not down and not right:
        return images
    if down >= images.shape[-2] or right >= images.shape[-1]:
        raise ArgumentValueError(
            f"images of {tuple(images.shape[-2:])} are too small to be mirrored up to a multiple of {stride}"
        )
    return F.pad(images, (0, right, 0, down), mode="reflect")


def _refine(inputs: int, middle: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, middle, 3, padding=1), nn.ReLU(), nn.Conv2d(middle, outputs, 3, padding=1), nn.ReLU()
    )


def density_head(inputs: int, width: int) -> nn.Sequential:
    """From features to a density that is not negative: two 1×1 convolutions, each with ReLU.

    The last one starts with weights of one sign: the ReLU of a map that starts below 0 everywhere lets no gradient
    through, and its expert would stay dead.
    """
    last = nn.Conv2d(width, 1, 1)
    with torch.no_grad():
        last.weight.abs_()
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU(), last, nn.ReLU())


def _doubled(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
