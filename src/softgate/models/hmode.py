"""HMoDE: density maps of three scales as experts, merged pixel by pixel by a hierarchy of gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_number
from softgate.errors import ArgumentTypeError, ArgumentValueError, MissingExtraError, bad_type, bad_value
from softgate.losses.local_counts import check_maps
from softgate.losses.relative_counting import HardError, relative_local_counting_loss
from softgate.models._density_experts import DensityExperts, init_normal, padded
from softgate.models.vgg_pyramid import VGGPyramid
from softgate.routing.hierarchical_mixture import HierarchicalMixture, MixtureOutput

__all__ = ["HMoDE", "density_experts_loss"]

#: Persons per pixel above which a pixel counts as crowded.
_CROWDED = 1e-5


class HMoDE(nn.Module):
    """Crowd counter whose three density maps are merged by :class:`softgate.routing.HierarchicalMixture`.

    Args:
        backbone: ``"vgg16_bn"``, or a module that returns feature maps, each of half the sides of the one before, of
            which the last three are used (``timm.create_model(..., features_only=True)``).
        pretrained: ImageNet weights of torchvision for ``"vgg16_bn"``, which must be installed and may download them.
        channels: of the backbone's last three feature maps; asked of it if None (``widths``, or timm's
            ``feature_info``).
        stride: image pixels per pixel of the coarsest features; asked of the backbone if None. Images of other sizes
            are mirrored at the right and lower edge, and the maps cropped.
        head_width: hidden channels of the density heads.
        density_scale: the maps predict density times this number (100 in the authors' code), which keeps them away
            from 0; :meth:`count` and :meth:`loss` know of it.
        init_std: standard deviation of all weights outside the backbone; None for torch's own initial values, with
            heads whose maps start positive, which suit small networks trained from nothing.
        mask: as in :class:`softgate.routing.HierarchicalMixture`.
        gate_relu: a ReLU on the gates' logits, as in the authors' code: for parity only.
        strict: raise where a gate's logits are NaN or infinite.

    Shapes: images (B, channels, H, W) -> :class:`softgate.routing.MixtureOutput` with seven maps (B, 1, H, W)
    and the attention mask at the size of the images.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or the backbone returns no list of features.
        ArgumentValueError: an argument is not allowed, or images do not fit.
        MissingExtraError: ``pretrained`` without torchvision.

    Example:
        >>> model = HMoDE(VGGPyramid(1, (2, 4, 8, 8, 8), (1, 1, 1, 1, 1)), head_width=4)
        >>> found = model(torch.rand(2, 1, 40, 48))
        >>> found.final.shape, model.count(found).shape
        (torch.Size([2, 1, 40, 48]), torch.Size([2]))

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """

    def __init__(
        self,
        backbone: Literal["vgg16_bn"] | nn.Module = "vgg16_bn",
        pretrained: bool = False,
        *,
        channels: Sequence[int] | None = None,
        stride: int | None = None,
        head_width: int = 64,
        density_scale: float = 100.0,
        init_std: float | None = 0.01,
        mask: bool = True,
        gate_relu: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        network = make_backbone(backbone, pretrained)
        channels, self.stride = _facts(network, channels, stride)
        self.density_scale = check_number("density_scale", density_scale, low=0.0, low_open=True, high_open=True)
        self.experts = DensityExperts(network, channels, head_width)
        self.mixture = HierarchicalMixture(3, channels[-1], mask=mask, relu_logits=gate_relu, strict=strict)
        if init_std is not None:
            check_number("init_std", init_std, low=0.0, low_open=True, high_open=True)
            for name, part in self.experts.named_children():
                if name != "backbone":
                    init_normal(part, init_std)
            init_normal(self.mixture, init_std)

    def forward(self, images: Tensor) -> MixtureOutput:
        """The seven density maps of ``images``, times ``density_scale``."""
        experts = self.experts(padded(images, self.stride))
        found = self.mixture(experts.maps, experts.coarse)
        attention = None if found.attention is None else to_image(found.attention, images, self.stride)
        maps = tuple(to_image(m, images, self.stride) for m in found.maps)
        return dataclasses.replace(found, maps=maps, attention=attention)

    def count(self, output: MixtureOutput | Tensor) -> Tensor:
        """Number of persons in each image, (B,), of an output or of one of its maps."""
        final = output.final if isinstance(output, MixtureOutput) else output
        return final.float().sum((1, 2, 3)) / self.density_scale

    def loss(self, output: MixtureOutput, density: Tensor, **weights: Any) -> Tensor:
        """The paper's loss of ``output`` for the true ``density`` (B, 1, H, W) in persons per pixel.

        Args:
            output: what the model returned.
            density: sums to the number of persons, not scaled.
            **weights: of the terms, see :func:`density_experts_loss`.

        Returns:
            Scalar.
        """
        return density_experts_loss(output, density * self.density_scale, density_scale=self.density_scale, **weights)


def density_experts_loss(
    output: MixtureOutput,
    target: Tensor,
    *,
    density_scale: float = 1.0,
    relative: float = 1.0,
    importance: float = 1.0,
    attention: float = 1.0,
    patch: int = 16,
    hard_error: HardError = "none",
) -> Tensor:
    """Squared error, relative counting loss, balance of the experts and attention loss of a hierarchical mixture.

    Sums over pixels, divided by the batch: squared errors and relative counting losses of every map, weighted by two to
    the power of its level; the importance loss; and the cross-entropy of the attention mask against the pixels whose
    target is above 1e-5 times ``density_scale``.

    Args:
        output: of :class:`HMoDE`, or of a :class:`softgate.routing.HierarchicalMixture` whose maps were brought to the
            target's size.
        target: (B, 1, H, W), density times ``density_scale``.
        density_scale: the factor between density in persons per pixel and what the maps predict.
        relative: weight of the relative counting loss; 0 leaves it out.
        importance: weight of the importance loss.
        attention: weight of the attention loss.
        patch: side of the regions of the relative counting loss.
        hard_error: as in :func:`softgate.losses.relative_local_counting_loss`.

    Returns:
        Scalar; 0 for an empty batch.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or options that do not fit.

    Example:
        >>> model = HMoDE(VGGPyramid(1, (2, 4, 8, 8, 8), (1, 1, 1, 1, 1)), head_width=4, density_scale=1.0)
        >>> density_experts_loss(model(torch.rand(2, 1, 48, 48)), torch.zeros(2, 1, 48, 48)).shape
        torch.Size([])

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3; the
    authors' code.
    """
    if not isinstance(output, MixtureOutput):
        bad_type("output", output, "a MixtureOutput")
    check_float_tensor("target", target)
    check_number("density_scale", density_scale, low=0.0, low_open=True, high_open=True)
    for name, weight in (("relative", relative), ("importance", importance), ("attention", attention)):
        check_number(name, weight, low=0.0, high_open=True)
    total = importance * output.importance
    for level, found in zip(output.levels, output.maps, strict=True):
        check_maps(found, target.to(found.dtype))
        wide = found.float() if found.dtype.itemsize < 4 else found
        total = total + 2.0**level * (wide - target).square().sum()
        if relative:
            counted = relative_local_counting_loss(wide, target.to(wide.dtype), patch, hard_error=hard_error)
            total = total + relative * 2.0**level * counted
    if attention and output.attention is not None:
        total = total + attention * _attention_loss(output.attention, target > _CROWDED * density_scale)
    return total / max(target.shape[0], 1)


def _attention_loss(attention: Tensor, crowded: Tensor) -> Tensor:
    """Binary cross-entropy summed over the pixels of the image, with the authors' guard inside the logarithms."""
    found = F.interpolate(attention, crowded.shape[-2:], mode="nearest-exact")
    return -torch.where(crowded, found + 1e-10, 1 - found + 1e-10).log().sum()


def to_image(found: Tensor, images: Tensor, stride: int) -> Tensor:
    """A coarse map repeated to the size of the padded images, then cropped to ``images``.

    Each map predicts density per pixel of the image, so repeating it keeps what it says.
    """
    height, width = images.shape[-2:]
    padded_size = (height + -height % stride, width + -width % stride)
    return F.interpolate(found, padded_size, mode="nearest-exact")[..., :height, :width]


def make_backbone(backbone: str | nn.Module, pretrained: bool = False) -> nn.Module:
    """The module that ``backbone`` names, with ImageNet weights if ``pretrained``."""
    if isinstance(backbone, nn.Module):
        if pretrained:
            raise ArgumentValueError(
                "pretrained must be False with a backbone that is a module: load its weights first"
            )
        return backbone
    if backbone != "vgg16_bn":
        if not isinstance(backbone, str):
            bad_type("backbone", backbone, "'vgg16_bn' or a module")
        bad_value("backbone", backbone, "'vgg16_bn' or a module")
    network = VGGPyramid()
    if pretrained:
        try:
            from torchvision.models import vgg16_bn  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtraError("torchvision", "vision", "pretrained=True") from error
        network.load_features(vgg16_bn(weights="IMAGENET1K_V1").features.state_dict())
    return network


def _facts(network: nn.Module, channels: Sequence[int] | None, stride: int | None) -> tuple[tuple[int, ...], int]:
    """Channels of the last three feature maps and the coarsest stride, as given or as the backbone says."""
    info = getattr(network, "feature_info", None)
    if channels is None:
        channels = getattr(network, "widths", None) or (info.channels() if info is not None else None)
    if stride is None:
        stride = getattr(network, "stride", None) or (info.reduction()[-1] if info is not None else None)
    if channels is None or stride is None:
        raise ArgumentTypeError("channels and stride must be given for a backbone that does not tell them")
    return tuple(channels)[-3:], int(stride)
