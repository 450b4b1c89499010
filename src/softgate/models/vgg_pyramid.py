"""The convolutions of VGG with batch normalisation, giving their features before every pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_sizes
from softgate.errors import ArgumentValueError, bad_value

__all__ = ["VGGPyramid"]


class VGGPyramid(nn.Module):
    """Blocks of 3×3 convolutions, each with batch normalisation and ReLU, with 2×2 pooling between the blocks.

    The defaults are the thirteen convolutions of VGG-16.

    Args:
        channels: of the images.
        widths: channels of each block.
        depths: convolutions of each block.

    Shapes: images (B, channels, H, W), sides multiples of 2 to the power of the number of blocks less one -> a list of
    the features of every block, of strides 1, 2, 4, ….

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size is not allowed, or images do not fit.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in VGGPyramid(1, widths=(4, 8), depths=(1, 1))(torch.zeros(1, 1, 8, 8))]
        [(1, 4, 8, 8), (1, 8, 4, 4)]

    Source: Simonyan and Zisserman, arXiv 1409.1556, table 1 (D), with batch normalisation.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            bad_value("depths", tuple(depths), f"one number for each of the {len(widths)} widths")
        check_sizes(channels=channels, **{f"widths[{i}]": width for i, width in enumerate(widths)})
        check_sizes(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        self.channels, self.widths = channels, tuple(widths)
        blocks: list[nn.Module] = []
        inputs = channels
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the coarsest features."""
        return int(2 ** (len(self.blocks) - 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of every block."""
        check_float_tensor("images", images)
        sides = tuple(images.shape[-2:])
        if images.ndim != 4 or images.shape[1] != self.channels or any(s % self.stride for s in sides) or 0 in sides:
            raise ArgumentValueError(
                f"images must have shape (B, {self.channels}, H, W) with sides that are multiples of {self.stride}, "
                f"got {tuple(images.shape)}"
            )
        found = []
        for block in self.blocks:
            images = block(images)
            found.append(images)
        return found

    def load_features(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a sequential VGG with the same convolutions, such as torchvision's ``features``.

        Args:
            state: its state dict; names may differ, the order of layers may not.

        Raises:
            ArgumentValueError: another number of tensors, or other shapes.
        """
        own = self.state_dict()
        shapes = [tuple(x.shape) for x in own.values()], [tuple(x.shape) for x in state.values()]
        if shapes[0] != shapes[1]:
            raise ArgumentValueError(
                f"state must hold the {len(shapes[0])} tensors of these convolutions in order, got {len(shapes[1])} "
                "tensors of other shapes" if len(shapes[0]) == len(shapes[1]) else
                f"state must hold {len(shapes[0])} tensors, got {len(shapes[1])}"
            )  # fmt: skip
        self.load_state_dict(dict(zip(own, state.values(), strict=True)))
