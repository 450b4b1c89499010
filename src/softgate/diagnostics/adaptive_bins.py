"""Bins whose edges follow the activity of one layer at one time."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError

__all__ = ["adaptive_edges", "bin_index"]


def adaptive_edges(activity: Tensor, bins: int = 30, low: float | None = None) -> Tensor:
    """Edges between which equally many *distinct* values of a layer lie (entropy-based adaptive binning, EBAB).

    All units of the layer are pooled. The value ``low`` has a bin of its own, so that the zeros of ReLU, which are
    many, do not count as one level among the others; so has the largest value. Quantiles of all samples would be
    something else: a value that occurs often would take up several bins.

    Args:
        activity: finite values, any shape, not empty.
        bins: number of bins between ``low`` and the largest value.
        low: value with a bin of its own, or a bound below all values. None takes 0 where no value is negative, else a
            number below all. Where a value is below the one given, the next number below all values takes its place.

    Returns:
        ``[low, u_0, u_⌊U/bins⌋, …, u_⌊(bins-1)U/bins⌋, u_last]`` for the U distinct values u without ``low``, in
        ascending order and the dtype of ``activity`` (float32 for 16-bit); edges repeat where U is below ``bins``. Only
        ``[low]`` if all values are ``low``.

    Raises:
        ArgumentTypeError: not a real floating-point tensor, or ``bins`` or ``low`` of a wrong type.
        ArgumentValueError: ``bins`` below 1, ``low`` not finite, or values that are absent or not finite.

    Example:
        >>> import torch
        >>> adaptive_edges(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]), bins=2)
        tensor([0., 1., 3., 4.])

    Paper: Adaptive Estimators, arXiv 1902.09037, entropy-based adaptive binning.
    """
    check_float_tensor("activity", activity)
    check_sizes(bins=bins)
    if not activity.numel() or not bool(activity.isfinite().all()):
        raise ArgumentValueError("activity must hold finite values only, and at least one")
    values = activity.detach().to(compute_dtype(activity.dtype))
    floor = _floor(values, low)
    levels = values.unique()
    levels = levels[levels != floor]
    if not len(levels):
        return floor.reshape(1)
    place = torch.arange(bins, device=levels.device) * len(levels) // bins
    return torch.cat((floor.reshape(1), levels[place], levels[-1:]))


def _floor(values: Tensor, low: float | None) -> Tensor:
    smallest = values.amin()
    below = torch.nextafter(smallest, smallest.new_tensor(float("-inf")))
    if low is None:
        return torch.where(smallest >= 0, torch.zeros_like(smallest), below)
    wanted = smallest.new_tensor(check_number("low", low, low_open=True, high_open=True))
    return torch.where(smallest >= wanted, wanted, below)


def bin_index(activity: Tensor, edges: Tensor) -> Tensor:
    """Number of the bin of every value: ``edges[i] <= value < edges[i + 1]`` gives ``i``, below all edges ``-1``.

    The largest value, which is the last edge, has the last number to itself.

    Args:
        activity: values of any shape.
        edges: ascending, of the same dtype.

    Returns:
        int64 of the shape of ``activity``, from -1 to ``len(edges) - 1``.

    Example:
        >>> import torch
        >>> bin_index(torch.tensor([0.0, 0.5, 1.0, 4.0]), torch.tensor([0.0, 1.0, 3.0, 4.0]))
        tensor([0, 0, 1, 3])
    """
    return torch.bucketize(activity.contiguous(), edges, right=True) - 1
