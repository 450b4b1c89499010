"""Parts that the blocks of MAXIM share: layouts, initial weights, channel attention, supervised attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate._math.gelu import tanh_gelu
from softgate.errors import ArgumentValueError, bad_value

__all__ = ["RCAB", "RDCAB", "ChannelAttention", "SupervisedAttention"]

EPS = 1e-6
#: Standard deviation of a standard normal variable cut off at two.
_CUT_STD = 0.87962566103423978


def last(x_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) seen as (B, H, W, C): no copy, and contiguous if the memory is ``channels_last``."""
    return x_BCHW.permute(0, 2, 3, 1)


def first(x_BHWC: Tensor) -> Tensor:
    """(B, H, W, C) seen as (B, C, H, W)."""
    return x_BHWC.permute(0, 3, 1, 2)


def check_map(name: str, x: Tensor, channels: int) -> None:
    """Refuse what is no map (B, ``channels``, H, W)."""
    check_float_tensor(name, x)
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        bad_value(name, tuple(x.shape), f"of shape (B, {channels}, H, W)")


def small_normal(*layers: nn.Linear, bias: float = 0.0) -> None:
    """Weights from N(0, 0.02²)."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.constant_(layer.bias, bias)


def lecun_normal(*layers: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Weights from a normal distribution cut off at two standard deviations, of variance 1 / fan-in; biases zero."""
    for layer in layers:
        inputs = layer.weight.shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1]
        std = math.sqrt(1.0 / (inputs * layer.weight[0, 0].numel())) / _CUT_STD
        nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class ChannelAttention(nn.Module):
    """Channels gated by their means over the map: ``x * sigmoid(W2 relu(W1 mean(x)))``.

    Args:
        channels: of the map.
        reduction: the hidden layer has ``channels // reduction`` units.

    Shapes: (B, channels, H, W) -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size is not allowed, or the map does not fit.

    Example:
        >>> ChannelAttention(8)(torch.rand(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])

    Paper: MAXIM, arXiv 2201.02973, section 3.1; squeeze and excitation, arXiv 1709.01507.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        check_sizes(channels=channels, reduction=reduction)
        if reduction > channels:
            bad_value("reduction", reduction, f"at most the number of channels, {channels}")
        self.channels = channels
        self.squeeze, self.excite = (
            nn.Linear(channels, channels // reduction),
            nn.Linear(channels // reduction, channels),
        )
        lecun_normal(self.squeeze, self.excite)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with every channel scaled."""
        check_map("x", x, self.channels)
        scales = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * scales[:, :, None, None]


class RCAB(nn.Module):
    """Residual channel attention block: ``x + CA(conv(lrelu(conv(LN x))))`` with 3×3 convolutions.

    Args:
        channels: of the map.
        reduction: of the channel attention.
        slope: of the leaky ReLU.

    Shapes: (B, channels, H, W) -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size is not allowed, or the map does not fit.

    Example:
        >>> RCAB(8)(torch.rand(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])

    Paper: MAXIM, arXiv 2201.02973, section 3.1.
    """

    def __init__(self, channels: int, reduction: int = 4, slope: float = 0.2) -> None:
        super().__init__()
        self.attention = ChannelAttention(channels, reduction)
        self.slope = check_number("slope", slope)
        self.norm = nn.LayerNorm(channels, EPS)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        lecun_normal(self.conv1, self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus the block."""
        check_map("x", x, self.norm.normalized_shape[0])
        hidden = F.leaky_relu(self.conv1(first(self.norm(last(x)))), self.slope)
        return x + self.attention(self.conv2(hidden))


class RDCAB(nn.Module):
    """Residual dense channel attention block: ``x + CA(W_b gelu(W_a LN x))``, pixel by pixel but for the attention.

    Args:
        channels: of the map.
        reduction: of the channel attention.

    Shapes: (B, channels, H, W) -> the same.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size is not allowed, or the map does not fit.

    Example:
        >>> RDCAB(8)(torch.rand(1, 8, 4, 4)).shape
        torch.Size([1, 8, 4, 4])

    Paper: MAXIM, arXiv 2201.02973, section 3.1.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.attention = ChannelAttention(channels, reduction)
        self.norm = nn.LayerNorm(channels, EPS)
        self.w_in, self.w_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        small_normal(self.w_in, self.w_out)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus the block."""
        check_map("x", x, self.norm.normalized_shape[0])
        return x + self.attention(first(self.w_out(tanh_gelu(self.w_in(self.norm(last(x)))))))


class SupervisedAttention(nn.Module):
    """An image predicted from features, and features gated by that image, for the next stage.

    ``image = conv(x) + input`` and ``features = conv(x) * sigmoid(conv(image)) + x`` with 3×3 convolutions.

    Args:
        channels: of the features.
        in_channels: of the input image.
        out_channels: of the predicted image.
        always_residual: add the input image whenever the channels agree; the authors' code adds it to outputs of three
            channels only.

    Shapes: features (B, channels, H, W), input image (B, in_channels, H, W) -> features (B, channels, H, W),
    image (B, out_channels, H, W).

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a size is not allowed, or a map does not fit.

    Example:
        >>> features, image = SupervisedAttention(8)(torch.rand(1, 8, 4, 4), torch.rand(1, 3, 4, 4))
        >>> features.shape, image.shape
        (torch.Size([1, 8, 4, 4]), torch.Size([1, 3, 4, 4]))

    Paper: MAXIM, arXiv 2201.02973, section 3.4, after MPRNet, arXiv 2102.02808.
    """

    def __init__(
        self, channels: int, in_channels: int = 3, out_channels: int = 3, *, always_residual: bool = False
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, in_channels=in_channels, out_channels=out_channels)
        self.channels, self.in_channels = channels, in_channels
        self.residual = in_channels == out_channels and (out_channels == 3 or always_residual)
        self.features = nn.Conv2d(channels, channels, 3, padding=1)
        self.image = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.gate = nn.Conv2d(out_channels, channels, 3, padding=1)
        lecun_normal(self.features, self.image, self.gate)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features for the next stage, and the predicted image."""
        check_map("x", x, self.channels)
        check_map("image", image, self.in_channels)
        if image.shape[2:] != x.shape[2:]:
            raise ArgumentValueError(f"image must have the sides of x, {tuple(x.shape[2:])}, got {tuple(image.shape)}")
        predicted = self.image(x) + image if self.residual else self.image(x)
        return self.features(x) * torch.sigmoid(self.gate(predicted)) + x, predicted
