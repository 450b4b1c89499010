"""Activations that are polynomials, written in Hermite polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate._math import masks
from softgate.errors import ArgumentValueError, bad_type
from softgate.registry import method

__all__ = ["HermiteActivation", "hermite_activation"]

#: Squares of the Hermite coefficients from degree 0 on: the activations that make a deep network consistent for inputs
#: on the unit sphere of 2, 3, 5 and 9 dimensions.
NAMED_POWERS: dict[str, tuple[float, ...]] = {
    "2d_opt": (0.0, 1 / 2, 0.0, 0.0, 0.0, 0.0, 0.0, 1 / 2),
    "3d_opt": (0.0, 1 / 2, 0.0, 1 / 2),
    "5d_opt": (0.0, 1 / 4, 1 / 2, 1 / 4),
    "9d_opt": (0.0, 1 / 16, 7 / 8, 1 / 16),
}


def check_coefficients(coefficients: Any, name: str = "coefficients") -> tuple[float, ...]:
    """Hermite coefficients from degree 0 on, without trailing zeros; a name gives those it stands for."""
    known = ", ".join(map(repr, NAMED_POWERS))
    if isinstance(coefficients, str):
        if coefficients not in NAMED_POWERS:
            raise ArgumentValueError(f"{name} must be one of {known}, or numbers, got {coefficients!r}")
        return tuple(math.sqrt(power) for power in NAMED_POWERS[coefficients])
    if isinstance(coefficients, Tensor):
        coefficients = coefficients.tolist()
    if not isinstance(coefficients, Sequence):
        bad_type(name, coefficients, f"a sequence of numbers, or one of {known}")
    values = [check_number(name, c, low_open=True, high_open=True) for c in coefficients]
    while values and values[-1] == 0.0:
        values.pop()
    if len(values) < 2:
        raise ArgumentValueError(f"{name} must not vanish beyond degree 0, got {tuple(coefficients)!r}")
    return tuple(values)


def monomials(coefficients: Sequence[float]) -> list[float]:
    """Coefficients of 1, x, x², … of ``Σ_k c_k he_k(x)``, by ``√(k+1) he_{k+1} = x he_k - √k he_{k-1}``."""
    total = [0.0] * len(coefficients)
    before, current = [0.0] * len(coefficients), [1.0] + [0.0] * (len(coefficients) - 1)
    for k, c in enumerate(coefficients):
        total = [t + c * p for t, p in zip(total, current, strict=True)]
        shifted = [0.0, *current[:-1]]
        following = [(s - math.sqrt(k) * b) / math.sqrt(k + 1) for s, b in zip(shifted, before, strict=True)]
        before, current = current, following
    return total


def horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """``Σ_k coefficients[k] x^k``; at least two coefficients, the last one not 0."""
    *rest, last = coefficients
    value = last * x
    for c in reversed(rest[1:]):
        value = (value + c) * x if c else value * x
    return value + rest[0]


@method(
    site="activations",
    family="scalar_map",
    paper="optimal-classifiers",
    source="arXiv 2204.14126, activations by their Hermite expansion, and the examples with consistent limits",
    variants={"default": {}, "even": {"coefficients": (0.5, 0.0, 1.0)}, "2d_opt": {"coefficients": "2d_opt"}},
    error_scale="tensor",
)
def hermite_activation(x: Tensor, coefficients: Sequence[float] | str = "3d_opt") -> Tensor:
    r"""Polynomial ``Σ_k c_k he_k(x)`` in Hermite polynomials that are orthonormal under N(0, 1).

    .. math:: he_0 = 1, \quad he_1 = x, \quad he_2 = (x^2 - 1)/\sqrt 2, \quad he_3 = (x^3 - 3x)/\sqrt 6, \ \dots

    For a standard normal x the mean is c_0 and the mean square ``Σ c_k²``. Made for inputs of about unit variance: far
    out it grows like the highest power.

    Args:
        x: any shape, real floating point.
        coefficients: c_0, c_1, …, or the name of a set with a consistent infinite limit: ``"2d_opt"``, ``"3d_opt"``,
            ``"5d_opt"``, ``"9d_opt"`` (dimension of the inputs, which lie on a sphere).

    Returns:
        Of the shape and dtype of ``x``; 16-bit types are computed in float32. NaN gives NaN.

    Raises:
        ArgumentTypeError: ``x`` is not a real floating-point tensor, ``coefficients`` no sequence of numbers.
        ArgumentValueError: an unknown name, numbers that are not finite, or nothing beyond a constant.

    Example:
        >>> import torch
        >>> hermite_activation(torch.tensor([0.0, 1.0, 2.0]), (0.0, 1.0))
        tensor([0., 1., 2.])

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126.
    """
    check_float_tensor("x", x)
    powers = monomials(check_coefficients(coefficients))
    with masks.without_autocast(x):
        return horner(x.to(masks.accumulation_dtype(x.dtype)), powers).to(x.dtype)


class HermiteActivation(nn.Module):
    """Module form of :func:`hermite_activation`.

    Args:
        coefficients: c_0, c_1, …, or a name; see there. :func:`softgate.activations.design_activation` finds the
            coefficients for a dimension.

    Example:
        >>> import torch
        >>> HermiteActivation((0.0, 0.0, 1.0))(torch.tensor([1.0]))
        tensor([0.])
    """

    def __init__(self, coefficients: Sequence[float] | str = "3d_opt") -> None:
        super().__init__()
        self.coefficients = check_coefficients(coefficients)

    def forward(self, x: Tensor) -> Tensor:
        """The polynomial, entry by entry."""
        return hermite_activation(x, self.coefficients)

    def extra_repr(self) -> str:
        """The coefficients, for ``repr``."""
        return "(" + ", ".join(f"{c:.4g}" for c in self.coefficients) + ")"
