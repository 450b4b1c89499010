"""The Gaussian kernel of two sets of points: the weights of softmax-free attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_same_device
from softgate._math import masks
from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.registry import method


def gaussian(a_BND: Tensor, b_BMD: Tensor) -> Tensor:
    """exp(-|a_i - b_j|²/2), (…, N, M), in the dtype of the points.

    The three-term form of the distance loses digits where the points lie far from the origin. Distances do not change
    when all points move, so both sets are moved by the mean of ``b`` first; a constant, as far as derivatives go.
    """
    if b_BMD.shape[-2]:
        centre_B1D = b_BMD.detach().mean(-2, keepdim=True)
        a_BND, b_BMD = a_BND - centre_B1D, b_BMD - centre_B1D
    squares_BNM = a_BND.square().sum(-1).unsqueeze(-1) + b_BMD.square().sum(-1).unsqueeze(-2)
    distances_BNM = (squares_BNM - 2.0 * (a_BND @ b_BMD.mT)).clamp_min(0.0)
    return torch.exp(-0.5 * distances_BNM)


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    yield (draw(2, 3, 4, 2), draw(2, 3, 3, 2)), {}
    yield (draw(5, 3), draw(4, 3)), {}
    yield (100.0 + draw(2, 7, 3), 100.0 + draw(2, 4, 3)), {}  # far from the origin
    yield (draw(0, 4, 3), draw(0, 2, 3)), {}
    yield (draw(2, 0, 3), draw(2, 2, 3)), {}
    yield (draw(2, 3, 3), draw(2, 0, 3)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    a = torch.ones(2, 4, 3)
    yield (a, torch.ones(2, 5, 2)), {}, ValueError, "b"
    yield (a, torch.ones(3, 5, 3)), {}, ValueError, "b"
    yield (a, torch.ones(5, 3)), {}, ValueError, "b"
    yield (a, torch.ones(2, 5, 3, dtype=torch.float64)), {}, TypeError, "b"
    yield (torch.ones(3), torch.ones(3)), {}, ValueError, "a"


@method(
    site="attention",
    family="custom",
    paper="soft-linear-transformer",
    source="SOFT, arXiv 2110.11945, eq. 3; the scale of the queries is the caller's",
    output_range=(0.0, 1.0),
    samples=_samples,
    bad_inputs=_bad_inputs,
)
def gaussian_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Gaussian kernel ``exp(-|a_i - b_j|² / 2)`` of two sets of points.

    Args:
        a: (…, N, D).
        b: (…, M, D), the same leading dimensions and dtype.

    Returns:
        (…, N, M) in the dtype of ``a``, in [0, 1]; distances of 16-bit points are taken in float32. Entries of points
        further apart than about 13 (float32) are subnormal or 0. NaN in a point reaches the entries of that point, in
        ``b`` the whole matrix.

    Raises:
        ArgumentTypeError: not real floating-point tensors of one dtype.
        ArgumentValueError: shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> gaussian_kernel(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.3679]])

    Paper: SOFT, arXiv 2110.11945, eq. 3.
    """
    for name, points in (("a", a), ("b", b)):
        check_float_tensor(name, points)
        if points.ndim < 2:
            raise ArgumentValueError(f"{name} must have shape (..., points, features), got {tuple(points.shape)}")
    check_same_device(a=a, b=b)
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1]:
        raise ArgumentValueError(
            f"b must have the leading dimensions and the features of a {tuple(a.shape)}, got {tuple(b.shape)}"
        )
    if a.dtype != b.dtype and masks.autocast_dtype(a) is None:
        raise ArgumentTypeError(f"b must have the dtype of a ({a.dtype}), got {b.dtype}")
    with masks.without_autocast(a):  # as torch's own cdist, points are not rounded to 16 bits first
        dtype = masks.accumulation_dtype(torch.promote_types(a.dtype, b.dtype))
        return gaussian(a.to(dtype), b.to(dtype)).to(a.dtype)
