"""Crowds: density maps of annotated heads, and a synthetic crowd whose heads are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.errors import ArgumentValueError, bad_value
from softgate.lab import seeds

__all__ = ["Crowd", "density_map", "synthetic_crowd"]

_HEADS = (4, 44)


@dataclass(frozen=True)
class Crowd:
    """Images of crowds.

    Attributes:
        images: (N, 1, size, size), float32, about 0 to 2.
        density: (N, 1, size, size), persons per pixel; the sum over an image is its number of heads.
        points: the heads of each image, (heads, 2) columns x and y in pixels.
    """

    images: Tensor
    density: Tensor
    points: tuple[Tensor, ...]

    @property
    def counts(self) -> Tensor:
        """Number of heads in each image, (N,) float32."""
        return torch.tensor([float(len(points)) for points in self.points])


def density_map(points: Tensor, shape: tuple[int, int], sigma: float = 4.0, truncate: float = 4.0) -> Tensor:
    """A Gaussian of mass one for every point, so that the sum of the map is the number of points in the image.

    Args:
        points: (N, 2), columns x and y in pixels; the centre of the first pixel is (0.5, 0.5). Points outside the image
            count nothing.
        shape: (H, W).
        sigma: standard deviation in pixels.
        truncate: a Gaussian ends this many standard deviations from its point along each axis; what it loses there and
            at the border is given back to its other pixels.

    Returns:
        (H, W), in the dtype of ``points``.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes or numbers that are not allowed, or coordinates that are not finite.

    Example:
        >>> density_map(torch.tensor([[2.5, 0.5], [99.0, 0.0]]), (4, 4), sigma=1.0).sum()
        tensor(1.)

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 4.
    """
    check_float_tensor("points", points)
    check_sizes(**{"shape[0]": shape[0], "shape[1]": shape[1]})
    check_number("sigma", sigma, low=0.0, low_open=True, high_open=True)
    check_number("truncate", truncate, low=1.0 / sigma, high_open=True)
    if points.ndim != 2 or points.shape[1] != 2:
        bad_value("points", tuple(points.shape), "of shape (N, 2)")
    if not bool(points.isfinite().all()):
        raise ArgumentValueError("points must be finite")
    x, y = points.double().unbind(1)
    inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    rows, columns = (_bumps(along[inside], side, sigma, truncate) for along, side in ((y, shape[0]), (x, shape[1])))
    return (rows.mT @ columns).to(points.dtype)


def _bumps(centres: Tensor, side: int, sigma: float, truncate: float) -> Tensor:
    """(N, side): a Gaussian along one axis for each centre, each row of sum one."""
    distance = torch.arange(side, dtype=centres.dtype, device=centres.device) + 0.5 - centres[:, None]
    bumps = torch.exp(-0.5 * (distance / sigma).square()).masked_fill(distance.abs() > truncate * sigma, 0.0)
    return bumps / bumps.sum(1, keepdim=True)


def synthetic_crowd(n: int, size: int = 64, seed: int = 0, *, sigma: float = 2.0) -> Crowd:
    """Bright discs on a grey ground, smaller and denser towards the top, as a camera sees a crowd.

    4 to 44 heads an image; y = size·u^1.6; the radius grows linearly from 0.8 to 2.8 pixels at the top by 1 to 5 pixels
    down to the bottom; amplitudes are uniform on (0.5, 1.2), edges are soft, and the image gets a smooth background of
    size 0.25 and noise of size 0.12.

    Args:
        n: number of images.
        size: side of an image in pixels, at least 8.
        seed: of everything.
        sigma: standard deviation of the Gaussians of the density, in pixels.

    Returns:
        The images with their densities and points.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is not allowed.

    Example:
        >>> crowd = synthetic_crowd(2, size=32)
        >>> torch.allclose(crowd.density.sum((1, 2, 3)), crowd.counts)
        True

    Source: this library's own stand-in for photographs of crowds.
    """
    check_sizes(n=n, size=size)
    if size < 8:
        bad_value("size", size, "at least 8")
    random = np.random.default_rng(seeds.derive(seed, "synthetic-crowd", size))
    images, density, points = [], [], []
    for _ in range(n):
        heads = _heads(random, size)
        points.append(torch.from_numpy(heads))
        images.append(torch.from_numpy(_picture(random, heads, size)))
        density.append(density_map(points[-1], (size, size), sigma))
    return Crowd(torch.stack(images)[:, None].float(), torch.stack(density)[:, None].float(), tuple(points))


def _heads(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    count = int(random.integers(_HEADS[0], _HEADS[1] + 1))
    x, u = random.uniform(size=(2, count))
    return np.stack((size * x, size * u**1.6), 1)


def _picture(random: np.random.Generator, heads: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    top, growth = random.uniform(0.8, 2.8), random.uniform(1.0, 5.0)
    radius = top + growth * heads[:, 1] / size
    pixels = np.arange(size) + 0.5
    squared = (pixels - heads[:, :1])[:, None, :] ** 2 + (pixels - heads[:, 1:])[:, :, None] ** 2
    radius = radius[:, None, None]
    discs = 1.0 / (1.0 + np.exp(np.clip((squared - radius**2) / radius, -50.0, 50.0)))
    amplitude = random.uniform(0.5, 1.2, (len(heads), 1, 1))
    return (amplitude * discs).sum(0) + _background(random, size) + 0.12 * random.standard_normal((size, size))


def _background(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    """A few random values stretched smoothly over the image."""
    coarse = torch.from_numpy(0.25 * random.standard_normal((1, 1, 4, 4)))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return smooth[0, 0].numpy()
