"""Which classifier an infinitely wide and deep network becomes, and activations for the consistent one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from softgate._checks import check_number
from softgate.activations.dual import DualActivation, dual_activation
from softgate.activations.hermite import HermiteActivation
from softgate.activations.sine import SineActivation
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type

__all__ = ["ActivationClass", "classify_activation", "design_activation"]


class ActivationClass(NamedTuple):
    """What :func:`classify_activation` found.

    Attributes:
        kind: ``"1-nn"``, ``"majority"`` or ``"singular"``.
        order: of the singularity of the limit kernel in the distance, ``|x - x'|^-order``, with
            ``order = 2 log a / -log b``; NaN for the other two kinds. The classifier is consistent for data of
            intrinsic dimension ``order``, which is the sphere in ``order + 1`` dimensions.
        constant: ``E[φ]² / E[φ²]``.
        slope: ``a = E[φ']² / E[φ²]``.
        stretch: ``b = E[φ'²] / E[φ²]``.
    """

    kind: Literal["1-nn", "majority", "singular"]
    order: float
    constant: float
    slope: float
    stretch: float


def classify_activation(
    activation: str | Sequence[float] | nn.Module | DualActivation | Callable[[Tensor], Tensor],
    *,
    tolerance: float = 1e-6,
) -> ActivationClass:
    r"""Which of three classifiers a network with this activation becomes, infinitely wide and deep.

    With ``A₀ = E[φ]²``, ``a = E[φ']²``, ``b = E[φ'²]`` over a standard normal and ``E[φ²] = 1``:

    - ``A₀ > 0``: the majority vote (ReLU, and most activations in use; with depth very slowly);
    - ``A₀ = 0, a = 0``: the nearest neighbour;
    - ``A₀ = 0, 0 < a < 1``: a weighted vote with the singular kernel ``|x - x'|^-order``, consistent if the order
      equals the intrinsic dimension of the data.

    Args:
        activation: anything that :func:`dual_activation` takes, which is exact, or a function of one float64 tensor,
            which is integrated numerically over [-12, 12]. Kinks at multiples of 1/2 cost no accuracy.
        tolerance: below it A₀ and a of a function count as 0; what is exact is compared with 0 itself.

    Returns:
        Kind, order, and the three numbers.

    Raises:
        ArgumentTypeError: not an activation.
        ArgumentValueError: an unknown name, values or slopes that are not finite, or a linear function: its network is
            a linear model at every depth.

    Example:
        >>> import torch
        >>> classify_activation("3d_opt")
        ActivationClass(kind='singular', order=2.0, constant=0.0, slope=0.5, stretch=2.0)
        >>> classify_activation(torch.nn.functional.gelu).kind
        'majority'

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126, theorems 1 and 2.
    """
    check_number("tolerance", tolerance, low=0.0, high=1.0, high_open=True)
    if _is_known(activation):
        dual = dual_activation(activation)  # type: ignore[arg-type]
        numbers = dual.constant, dual.slope, dual.stretch
        tolerance = 0.0
    elif callable(activation):
        numbers = _integrate(activation)
    else:
        raise ArgumentTypeError(
            f"activation must be a name, Hermite coefficients, a module or a function, got {type(activation).__name__}"
        )
    constant, slope, stretch = numbers
    if constant > tolerance:
        return ActivationClass("majority", math.nan, *numbers)
    if slope <= tolerance:
        return ActivationClass("1-nn", math.nan, *numbers)
    if slope >= 1.0 - max(tolerance, 1e-12):
        raise ArgumentValueError("activation must not be linear: depth changes nothing then")
    return ActivationClass("singular", -2.0 * math.log(slope) / math.log(stretch), *numbers)


def _is_known(activation: object) -> bool:
    return isinstance(
        activation, str | Sequence | DualActivation | HermiteActivation | SineActivation | nn.ReLU
    ) and not callable(getattr(activation, "tolist", None))


def _integrate(function: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """A₀, a and b of a function, by Gauss-Legendre panels of width 1/2."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    left = np.arange(-12.0, 12.0, 0.5)
    points = torch.tensor((left[:, None] + 0.25 * (nodes + 1.0)).ravel())
    density = torch.tensor(np.tile(0.25 * weights, len(left))) * torch.exp(-0.5 * points.square())
    density /= density.sum()
    with torch.enable_grad():
        leaf = points.clone().requires_grad_()
        values = function(leaf)
        if not isinstance(values, Tensor) or values.shape != points.shape:
            raise ArgumentValueError("activation must map a tensor entry by entry")
        slopes = torch.zeros_like(points)
        if values.requires_grad:
            (slopes,) = torch.autograd.grad(values.sum(), leaf)
    values = values.detach().double()
    square = float(density @ values.square())
    stretch = float(density @ slopes.square())
    if not (math.isfinite(square) and math.isfinite(stretch)) or square == 0.0:
        raise ArgumentValueError("activation must be finite with finite slopes, and not vanish")
    # E[φ'] = E[u φ(u)], which needs no derivative
    return float(density @ values) ** 2 / square, float(density @ (points * values)) ** 2 / square, stretch / square


def design_activation(dim: int, degree: int | None = None) -> HermiteActivation:
    r"""An activation whose infinitely wide and deep network classifies consistently.

    ``φ = √a he_1 + √(1-a) he_k`` with the one a for which the order of the limit kernel is the dimension of the sphere,
    ``-2 log a / log(a + k (1-a)) = dim - 1``.

    Args:
        dim: number of coordinates of the inputs, at least 2. They lie on a sphere, which has ``dim - 1`` dimensions.
        degree: k. The larger, the more evenly the mass is spread; it must exceed ``1 + 2 / (dim - 1)``. None takes the
            smallest possible, but at least 3.

    Returns:
        The activation.

    Raises:
        ArgumentTypeError: not ints.
        ArgumentValueError: ``dim`` below 2 or so large that a is no float, or ``degree`` too small.

    Example:
        >>> design_activation(3)
        HermiteActivation((0, 0.7071, 0, 0.7071))

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126, corollary on consistency.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        bad_type("dim", dim, "an int")
    if dim < 2:
        raise ArgumentValueError(f"dim must be at least 2, got {dim}")
    alpha = 0.5 * (dim - 1)
    least = math.floor(1.0 + 1.0 / alpha) + 1
    degree = max(3, least) if degree is None else degree
    if isinstance(degree, bool) or not isinstance(degree, int):
        bad_type("degree", degree, "an int")
    if degree < least:
        raise ArgumentValueError(f"degree must be at least {least} for dim={dim}, got {degree}")
    decay = _decay(alpha, degree)
    if decay > 600.0:
        raise ArgumentValueError(f"dim={dim} is too large: the linear part of the activation would vanish")
    middle = [0.0] * (degree - 2)
    return HermiteActivation((0.0, math.exp(-0.5 * decay), *middle, math.sqrt(-math.expm1(-decay))))


def _decay(alpha: float, degree: int) -> float:
    """The positive root t = -log a of ``t = alpha log(k - (k-1) e^-t)``; the difference is convex and vanishes at 0."""

    def gap(t: float) -> float:
        return t - alpha * math.log1p((degree - 1) * -math.expm1(-t))

    high = alpha * math.log(degree)
    low = high
    while gap(low) > 0.0:
        low *= 0.5
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if gap(middle) < 0.0 else (low, middle)
    return 0.5 * (low + high)
