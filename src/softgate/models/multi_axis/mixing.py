"""Linear mixing of the pixels of a map along one of two axes: inside windows, or across a grid that spans the map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.registry import method

__all__ = ["axis_mix"]

Axis = Literal["block", "grid"]
AXES = ("block", "grid")
Size = tuple[int, int]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(2, 4, 6, 3), draw(6, 6), draw(6)), {"size": (2, 3), "axis": "block"}
    yield (draw(2, 4, 6, 3), draw(6, 6), draw(6)), {"size": (2, 3), "axis": "grid"}
    yield (draw(1, 3, 6, 4).permute(0, 2, 3, 1), draw(4, 4)), {"size": (2, 2), "axis": "grid"}
    yield (draw(0, 4, 4, 2), draw(4, 4), draw(4)), {"size": (2, 2), "axis": "block"}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, weight = torch.ones(2, 4, 6, 3), torch.ones(4, 4)
    good = {"size": (2, 2), "axis": "block"}
    yield (x[0], weight), good, ArgumentValueError, "x"
    yield (x.long(), weight), good, ArgumentTypeError, "x"
    yield (x, weight.double()), good, ArgumentTypeError, "weight"
    yield (x, weight[:2]), good, ArgumentValueError, "weight"
    yield (x, weight, torch.ones(3)), good, ArgumentValueError, "bias"
    yield (x, weight, torch.ones(4).long()), good, ArgumentTypeError, "bias"
    yield (x, weight), {**good, "axis": "rows"}, ArgumentValueError, "axis"
    yield (x, weight), {**good, "size": 2}, ArgumentTypeError, "size"
    yield (x, weight), {**good, "size": (2, 0)}, ArgumentValueError, "size"
    yield (x, torch.ones(8, 8)), {"size": (2, 4), "axis": "grid"}, ArgumentValueError, "size"


@method(
    site="models",
    family="custom",
    paper="maxim",
    source="section 3.2, the spatial projections of the block and of the grid branch",
    samples=_samples,
    bad_inputs=_bad_inputs,
    error_scale="tensor",
)
def axis_mix(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, size: Sequence[int], axis: Axis) -> Tensor:
    """Mix the pixels of a map along the block or the grid axis, all channels with one matrix.

    ``axis="block"`` cuts the map into windows of ``size`` pixels and mixes the pixels of each window.
    ``axis="grid"`` cuts it into ``size`` equal cells and mixes the pixels that have the same place in all cells: a
    grid that spans the whole map. The cost is linear in the number of pixels either way.

    Args:
        x: (B, H, W, C), H and W multiples of ``size``.
        weight: (n, n) with n the product of ``size``; row p gives the weights of output position p, row by row.
        bias: (n,), one for each position; None for none.
        size: rows and columns of a window, or of the grid.
        axis: ``"block"`` or ``"grid"``.

    Returns:
        (B, H, W, C), dtype of ``x``.

    Raises:
        ArgumentTypeError: wrong types, or dtypes that differ.
        ArgumentValueError: shapes that do not fit.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 2, 4, 1)
        >>> mean = torch.full((4, 4), 0.25)
        >>> axis_mix(x, mean, size=(2, 2), axis="block").flatten()
        tensor([2.5000, 2.5000, 4.5000, 4.5000, 2.5000, 2.5000, 4.5000, 4.5000])
        >>> axis_mix(x, mean, size=(2, 2), axis="grid").flatten()
        tensor([3., 4., 3., 4., 3., 4., 3., 4.])

    Paper: MAXIM, arXiv 2201.02973, section 3.2.
    """
    rows, columns = check_size("size", size)
    check_choice("axis", axis, AXES)
    _check(x, weight, bias, rows * columns)
    if x.shape[1] % rows or x.shape[2] % columns:
        raise ArgumentValueError(f"size must divide the sides of the map, {tuple(x.shape[1:3])}, got {(rows, columns)}")
    return mix_axis(x, weight, bias, (rows, columns), axis)


def mix_axis(x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, size: Size, axis: Axis) -> Tensor:
    """:func:`axis_mix` of arguments that are known to fit."""
    mixed = mix_positions(axis_first(x_BHWC, size, axis), weight, bias)
    return axis_last(mixed, axis).reshape(x_BHWC.shape)


def axis_first(x_BHWC: Tensor, size: Size, axis: Axis) -> Tensor:
    """A view (rows, columns, B, …, …, C) whose first two axes are the ones to mix over."""
    cells = in_cells(x_BHWC, size, axis)  # (B, grid rows, cell rows, grid columns, cell columns, C)
    return cells.permute(2, 4, 0, 1, 3, 5) if axis == "block" else cells.permute(1, 3, 0, 2, 4, 5)


def in_cells(x_BHWC: Tensor, size: Size, axis: Axis) -> Tensor:
    """A view (B, grid rows, cell rows, grid columns, cell columns, C)."""
    if axis == "block":
        return x_BHWC.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0]))
    return x_BHWC.unflatten(2, (size[1], -1)).unflatten(1, (size[0], -1))


def axis_last(mixed: Tensor, axis: Axis) -> Tensor:
    """The view of :func:`in_cells` of what :func:`axis_first` turned."""
    return mixed.permute(2, 3, 0, 4, 1, 5) if axis == "block" else mixed.permute(2, 0, 3, 1, 4, 5)


def mix_positions(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``weight`` times the first two axes of ``x``: one matrix product, however many windows and images there are.

    With the positions first, channels and windows are columns of one matrix, so that neither the product nor its
    gradients need a transposed copy.
    """
    flat = x.reshape(weight.shape[1], -1)
    mixed = weight @ flat if bias is None else torch.addmm(bias[:, None], weight, flat)
    return mixed.reshape(x.shape)


def check_size(name: str, size: Any) -> Size:
    """Return ``size`` as two positive ints, or raise."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        bad_type(name, size, "a pair of positive ints")
    for side in size:
        if isinstance(side, bool) or not isinstance(side, int):
            bad_type(name, side, "a pair of positive ints")
        if side < 1:
            bad_value(name, tuple(size), "a pair of positive ints")
    return size[0], size[1]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, positions: int) -> None:
    check_float_tensor("x", x)
    check_float_tensor("weight", weight)
    if bias is not None:
        check_float_tensor("bias", bias)
    check_same_device(x=x, weight=weight, bias=bias)
    if x.ndim != 4 or 0 in x.shape[1:]:
        bad_value("x", tuple(x.shape), "of shape (B, H, W, C)")
    for name, value, shape in (("weight", weight, (positions, positions)), ("bias", bias, (positions,))):
        if value is None:
            continue
        if tuple(value.shape) != shape:
            bad_value(name, tuple(value.shape), f"of shape {shape}, the positions of size")
        if value.dtype != x.dtype:
            raise ArgumentTypeError(f"{name} must have the dtype of x, {x.dtype}, got {value.dtype}")
