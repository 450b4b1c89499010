"""How close two images are: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from softgate.errors import bad_value

__all__ = ["psnr", "ssim"]


def psnr(image: Tensor, target: Tensor, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of every image in decibels, ``10 log10(peak² / mean squared error)``.

    Args:
        image: (B, C, H, W); cut off at 0 and ``peak`` as a stored image would be.
        target: the same shape.
        peak: largest value of a pixel.

    Returns:
        (B,), float64; infinite for equal images.

    Example:
        >>> psnr(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5)).round()
        tensor([20.], dtype=torch.float64)
    """
    _check(image, target)
    error = (image.double().clamp(0.0, peak) - target.double()).square().mean((1, 2, 3))
    return 10.0 * torch.log10(peak**2 / error)


def ssim(image: Tensor, target: Tensor, peak: float = 1.0) -> Tensor:
    """Structural similarity of every image, mean over pixels and channels.

    Gaussian windows of 11 pixels and standard deviation 1.5, constants 0.01 and 0.03, no padding.

    Args:
        image: (B, C, H, W), sides of at least 11 pixels; cut off at 0 and ``peak``.
        target: the same shape.
        peak: largest value of a pixel.

    Returns:
        (B,), float64, at most 1.

    Example:
        >>> ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.5))
        tensor([1.], dtype=torch.float64)

    Source: Wang et al. 2004, the settings of their code.
    """
    _check(image, target)
    if min(image.shape[2:]) < 11:
        bad_value("image", tuple(image.shape), "of at least 11 by 11 pixels")
    x, y = image.double().clamp(0.0, peak), target.double()
    mean_x, mean_y, xx, yy, xy = (_windowed(z) for z in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x.square() + yy - mean_y.square() + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (luminance * structure).mean((1, 2, 3))


def _windowed(x: Tensor) -> Tensor:
    """Weighted means over windows, channel by channel."""
    weights = torch.tensor([math.exp(-0.5 * ((i - 5) / 1.5) ** 2) for i in range(11)], dtype=x.dtype, device=x.device)
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weights[None, None, :, None]), weights[None, None, None, :])
    return flat.unflatten(0, x.shape[:2])[:, :, 0]


def _check(image: Tensor, target: Tensor) -> None:
    if image.ndim != 4 or image.shape != target.shape or 0 in image.shape[1:]:
        bad_value("image", tuple(image.shape), f"of shape (B, C, H, W) and of that of target, {tuple(target.shape)}")
