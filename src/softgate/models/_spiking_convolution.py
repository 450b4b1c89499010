"""What the layers of spiking networks share: convolution and batch norm over all steps at once, and a check of input.

Shape suffixes: T steps, B images, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate.errors import bad_value

__all__: list[str] = []


def per_step(function: Callable[[Tensor], Tensor], x_TBC: Tensor) -> Tensor:
    """``function`` of all images of all steps as one batch."""
    return function(x_TBC.flatten(0, 1)).unflatten(0, x_TBC.shape[:2])


class ConvNorm(nn.Module):
    """A convolution and batch norm, whose statistics are those of all steps together.

    Args:
        conv: of one or two dimensions.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        norm = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm1d
        self.norm = norm(conv.out_channels)

    def forward(self, x_TBC: Tensor) -> Tensor:
        """(T, B, C, …) -> (T, B, channels of the convolution, …)."""
        return per_step(lambda x: self.norm(self.conv(x)), x_TBC)


def plane(in_dim: int, dim: int, kernel: int, stride: int = 1) -> ConvNorm:
    """A square filter without bias, padded so that stride 1 keeps the size of the map."""
    return ConvNorm(nn.Conv2d(in_dim, dim, kernel, stride, kernel // 2, bias=False))


def check_maps(x: Tensor, channels: int) -> None:
    """Raise unless ``x`` is (T, B, ``channels``, H, W) with at least one step."""
    check_float_tensor("x", x)
    if x.ndim != 5 or x.shape[2] != channels or len(x) == 0:
        bad_value("x", tuple(x.shape), f"of shape (steps, batch, {channels}, height, width): time comes first")
