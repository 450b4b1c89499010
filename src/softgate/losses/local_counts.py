"""Counts of a density map, patch by patch: sums over square patches, and the errors of a grid of counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device, check_sizes
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.registry import method

__all__ = ["grid_count_error", "local_count"]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(2, 1, 4, 6), 2), {}
    yield (draw(3, 3), 1), {}
    yield (draw(2, 4, 8).mT, 4), {}
    yield (draw(0, 1, 4, 4), 2), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    yield (torch.ones(4), 2), {}, ArgumentValueError, "x"
    yield (torch.ones(4, 5), 2), {}, ArgumentValueError, "patch"
    yield (torch.ones(4, 4), 0), {}, ArgumentValueError, "patch"
    yield (torch.ones(4, 4), 2.0), {}, ArgumentTypeError, "patch"
    yield (torch.ones(4, 4).long(), 2), {}, ArgumentTypeError, "x"


@method(
    site="losses",
    family="custom",
    paper="density-experts-crowd-counting",
    source="section 3, counts of the local regions of the relative loss",
    samples=_samples,
    bad_inputs=_bad_inputs,
)
def local_count(x: Tensor, patch: int = 16) -> Tensor:
    """Sum of ``x`` over each square patch.

    Args:
        x: (…, H, W), such as a density map (B, 1, H, W).
        patch: side of a patch; H and W must be multiples of it (pad with zeros, which count nothing).

    Returns:
        (…, H / patch, W / patch), float32 for 16-bit maps; its sum is that of ``x``.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: no image, or a side that is no multiple of ``patch``.

    Example:
        >>> local_count(torch.ones(1, 1, 2, 4), 2)
        tensor([[[[4., 4.]]]])

    Paper: Redesigning Multi-Scale Neural Network for Crowd Counting, arXiv 2208.02894, section 3.
    """
    check_float_tensor("x", x)
    check_sizes(patch=patch)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        bad_value("x", tuple(x.shape), "of shape (…, H, W)")
    if x.shape[-2] % patch or x.shape[-1] % patch:
        raise ArgumentValueError(f"patch must divide both sides of the map {tuple(x.shape[-2:])}, got {patch}")
    wide = x.to(compute_dtype(x.dtype))
    return wide.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch)).sum((-3, -1))


def grid_count_error(pred: Tensor, target: Tensor, level: int = 0) -> Tensor:
    """Grid average absolute error of each image: the errors of the counts in ``4**level`` equal cells, summed.

    Level 0 is the absolute error of the count: its mean over the images is MAE, the root of its mean square RMSE.
    Higher levels also charge a density that stands in the wrong place.

    Args:
        pred: (B, 1, H, W), predicted density.
        target: (B, 1, H, W), true density.
        level: number of times that both sides are halved; rows and columns go to the cell that holds their centre.

    Returns:
        (B,), float32 for 16-bit maps.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes differ, or a map has fewer rows or columns than cells.

    Example:
        >>> pred, target = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
        >>> grid_count_error(pred, target)
        tensor([0.])

    Paper: GAME after Guerrero-Gómez-Olmedo et al. 2015; used in arXiv 2208.02894, section 4.
    """
    check_maps(pred, target)
    if isinstance(level, bool) or not isinstance(level, int):
        bad_type("level", level, "an int of at least 0")
    if level < 0:
        bad_value("level", level, "an int of at least 0")
    height, width = pred.shape[-2:]
    if min(height, width) < 2**level:
        raise ArgumentValueError(f"level must leave a pixel in every cell of maps {height} by {width}, got {level}")
    wide = compute_dtype(pred.dtype)
    error = pred.to(wide) - target.to(wide)
    rows, columns = (_cells(side, 2**level, error) for side in (height, width))
    return (rows.mT @ error[:, 0] @ columns).abs().sum((-2, -1))


def _cells(side: int, cells: int, like: Tensor) -> Tensor:
    """(side, cells): 1 where a pixel's centre lies in the cell."""
    place = (2 * torch.arange(side, device=like.device) + 1) * cells // (2 * side)
    return (place[:, None] == torch.arange(cells, device=like.device)).to(like.dtype)


def check_maps(pred: Tensor, target: Tensor) -> None:
    """Refuse maps that are not of one shape (B, 1, H, W)."""
    check_float_tensor("pred", pred)
    check_float_tensor("target", target)
    check_same_device(pred=pred, target=target)
    if pred.ndim != 4 or pred.shape[1] != 1 or 0 in pred.shape[1:]:
        bad_value("pred", tuple(pred.shape), "of shape (B, 1, H, W)")
    if target.shape != pred.shape:
        bad_value("target", tuple(target.shape), f"of the shape {tuple(pred.shape)} of pred")
    if target.dtype != pred.dtype:
        raise ArgumentTypeError(f"target must have the dtype of pred, {pred.dtype}, got {target.dtype}")
