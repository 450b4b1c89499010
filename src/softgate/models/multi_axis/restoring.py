"""Restoring images of any size: pad, run, crop; by tiles where the whole is too large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value

__all__ = ["restore"]

Run = Callable[[Tensor], Tensor]


@torch.no_grad()
def restore(
    model: nn.Module, image: Tensor, tile: int | None = None, ensemble: int = 1, *, overlap: int = 32
) -> Tensor:
    """Restore an image of any size, or a batch of them.

    Odd sides get one more row or column, then both edges are mirrored up to a multiple of ``model.size_multiple`` (or
    repeated, where the image is too small to be mirrored), and the result is cropped. A size that fits already is not
    padded: the result is then that of ``model``.

    Args:
        model: a :class:`softgate.models.MAXIM`, or another module (B, C, H, W) -> (B, C, H, W) with an attribute
            ``size_multiple``. It is run as it is, in training or evaluation mode.
        image: (C, H, W) or (B, C, H, W), floating point in [0, 1], or uint8.
        tile: side of square tiles that are restored one by one, a multiple of ``size_multiple``; None for the whole
            image at once. Every tile has a grid of its own, so that results differ from those of the whole image.
        ensemble: 8 to average over the flips and quarter turns of the image, 1 for the image alone.
        overlap: of neighbouring tiles in pixels, even and below ``tile``; results fade into each other there.

    Returns:
        The restored image in the shape (but for the number of channels) and dtype of ``image``; uint8 is rounded and
        clipped, floating point is not clipped.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is not allowed.

    Example:
        >>> from softgate.models import MAXIM
        >>> model = MAXIM("S-1", features=4, groups=1, bottleneck_blocks=1)
        >>> restore(model, torch.zeros(3, 37, 50, dtype=torch.uint8)).shape
        torch.Size([3, 37, 50])

    Paper: MAXIM, arXiv 2201.02973; padding and ensemble as in the authors' ``run_eval.py``, tiles are this library's.
    """
    multiple = _check(model, image, tile, ensemble, overlap)
    floating = image if image.is_floating_point() else image.float() / 255.0
    batch = floating if image.ndim == 4 else floating[None]

    def run(x: Tensor) -> Tensor:
        return _padded(lambda y: _by_tiles(model, y, tile, overlap), x, multiple)

    found = run(batch) if ensemble == 1 else _averaged(run, batch)
    found = found if image.ndim == 4 else found[0]
    return found if image.is_floating_point() else (255.0 * found).round().clamp(0, 255).to(torch.uint8)


def _check(model: nn.Module, image: Tensor, tile: int | None, ensemble: int, overlap: int) -> int:
    multiple: Any = getattr(model, "size_multiple", None)
    if not isinstance(multiple, int):
        raise ArgumentTypeError(f"model must have an attribute size_multiple, got {type(model).__name__}")
    if not isinstance(image, Tensor):
        bad_type("image", image, "a torch.Tensor")
    if not image.is_floating_point() and image.dtype is not torch.uint8:
        raise ArgumentTypeError(f"image must be in floating point or uint8, got {image.dtype}")
    if image.ndim not in (3, 4) or 0 in image.shape[-3:]:
        bad_value("image", tuple(image.shape), "of shape (C, H, W) or (B, C, H, W)")
    if ensemble not in (1, 8):
        bad_value("ensemble", ensemble, "1 or 8")
    if tile is None:
        return multiple
    check_sizes(tile=tile)
    if tile % multiple:
        bad_value("tile", tile, f"a multiple of {multiple}")
    if isinstance(overlap, bool) or not isinstance(overlap, int):
        bad_type("overlap", overlap, "an even int")
    if overlap % 2 or not 0 <= overlap < tile:
        raise ArgumentValueError(f"overlap must be even, at least 0 and below tile, {tile}, got {overlap}")
    return multiple


def _padded(run: Run, x: Tensor, multiple: int) -> Tensor:
    """``run`` of ``x`` padded to multiples of ``multiple``, cropped."""
    height, width = x.shape[2:]
    x = _pad(x, (0, width % 2, 0, height % 2))
    rows, columns = -x.shape[2] % multiple, -x.shape[3] % multiple
    top, left = rows // 2, columns // 2
    found = run(_pad(x, (left, columns - left, top, rows - top)))
    return found[:, :, top : top + height, left : left + width]


def _pad(x: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    """Mirrored at the edges; repeated where the image is too small for that."""
    if not any(sides):
        return x
    fits = max(sides[:2]) < x.shape[3] and max(sides[2:]) < x.shape[2]
    return F.pad(x, sides, mode="reflect" if fits else "replicate")


def _averaged(run: Run, x: Tensor) -> Tensor:
    """Mean over the eight flips and quarter turns of a square."""
    total: Tensor | None = None
    for flipped in (False, True):
        for turns in range(4):
            found = torch.rot90(run(torch.rot90(x.flip(3) if flipped else x, turns, (2, 3))), -turns, (2, 3))
            found = found.flip(3) if flipped else found
            total = found if total is None else total + found
    assert total is not None
    return total / 8.0


def _by_tiles(model: Run, x: Tensor, tile: int | None, overlap: int) -> Tensor:
    """``model`` of ``x``, whole or tile by tile; sides are multiples of the model's."""
    if tile is None or max(x.shape[2:]) <= tile:
        return model(x)
    sides = [min(tile, side) for side in x.shape[2:]]
    window = _fade(sides[0], overlap, x)[:, None] * _fade(sides[1], overlap, x)
    total, weight = None, torch.zeros_like(x[:1, :1])
    for top in _starts(x.shape[2], sides[0], overlap):
        for left in _starts(x.shape[3], sides[1], overlap):
            place = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
            found = model(x[place]) * window
            if total is None:
                total = found.new_zeros(*found.shape[:2], *x.shape[2:])
            total[place] += found
            weight[place] += window
    assert total is not None
    return total / weight


def _starts(side: int, tile: int, overlap: int) -> Iterator[int]:
    """Where tiles begin; the last one ends at the edge."""
    yield from range(0, side - tile, tile - overlap)
    yield side - tile


def _fade(side: int, overlap: int, like: Tensor) -> Tensor:
    """Weights along one side of a tile: 1 inside, falling towards both ends over the overlap, never 0."""
    places = torch.arange(side, device=like.device, dtype=like.dtype) + 1
    return torch.minimum(places, places.flip(0)).div(overlap + 1).clamp(max=1.0)
