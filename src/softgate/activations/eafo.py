"""Entropy-based search for activations: the worst one, and the correction that lowers the entropy of the output."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate._math.densities import density_of
from softgate.errors import ArgumentValueError, bad_type

__all__ = ["CorrectedActivation", "eafo_correction", "worst_activation"]

#: Share of the largest step that leaves the inverse increasing.
_SAFE = 0.9


def worst_activation(density: str = "normal", low: float = 0.0, high: float = 1.0) -> Callable[[Tensor], Tensor]:
    """The activation between two bounds whose output has the largest entropy: the worst, by the paper's argument.

    It is the distribution function of the input, stretched to ``[low, high]``; its output is uniform.

    Args:
        density: of the input: ``"normal"``, ``"half_normal"``, ``"logistic"`` or ``"uniform"``.
        low: lower bound of the output.
        high: upper bound of the output.

    Returns:
        A function of one tensor, entry by entry.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an unknown density, bounds that are not finite, or ``low >= high``.

    Example:
        >>> import torch
        >>> worst_activation("logistic")(torch.tensor([0.0, 1.0]))  # the sigmoid
        tensor([0.5000, 0.7311])

    Paper: arXiv 2405.12954, worst activation function with boundary conditions.
    """
    known = density_of(density)
    low = check_number("low", low, low_open=True, high_open=True)
    high = check_number("high", high, low=low, low_open=True, high_open=True)

    def worst(x: Tensor) -> Tensor:
        return low + (high - low) * known.cdf(check_float_tensor("x", x)).clamp(0.0, 1.0)

    return worst


class CorrectedActivation:
    """What :func:`eafo_correction` returns: the corrected activation, and how it came about. Call it on a tensor.

    Attributes:
        grid: outputs x of the old activation, ascending, float64 (N,).
        inverse: inputs y(x) that give them.
        eta: the direction in which the entropy of the output falls fastest, as a change of ``inverse``.
        step: how much of it was taken.
    """

    def __init__(self, grid: Tensor, inverse: Tensor, eta: Tensor, step: float) -> None:
        self.grid, self.inverse, self.eta, self.step = grid, inverse, eta, step

    def __call__(self, x: Tensor) -> Tensor:
        """The corrected activation, linear between the points of the grid and beyond its ends."""
        check_float_tensor("x", x)
        places = (self.inverse + self.step * self.eta).to(x.device)
        values, wide = self.grid.to(x.device), x.double()
        right = torch.searchsorted(places, wide.detach().contiguous()).clamp(1, len(places) - 1)
        start, slope = places[right - 1], (values.diff() / places.diff())[right - 1]
        return (values[right - 1] + slope * (wide - start)).to(x.dtype)


def eafo_correction(
    activation: Callable[[Tensor], Tensor],
    density: str = "normal",
    *,
    step: float | None = None,
    reach: float = 6.0,
    points: int = 4097,
) -> CorrectedActivation:
    r"""Change an increasing activation so that the entropy of its output falls, to first order as fast as possible.

    With the inverse ``y(x)`` of the activation and the density p of its input,

    .. math:: \eta(x) = -\Big(p'(y)\, y' + p(y)\, \frac{y''}{y'}\Big)

    is the negative first variation of the entropy; the new activation is the inverse of ``y + c η``. For the identity
    under a normal input that is ``x - c C x exp(-x²/2)`` to first order, ``C = 1/√(2π)``. For the worst activation
    itself η is 0.

    Args:
        activation: function of one float64 tensor, entry by entry, twice differentiable and strictly increasing on the
            grid.
        density: of the input: ``"normal"``, ``"half_normal"``, ``"logistic"`` or ``"uniform"``.
        step: c; None takes 1, or less where the inverse would cease to increase.
        reach: the grid covers inputs within this distance of 0 that belong to the support of the density.
        points: of the grid.

    Returns:
        The new activation as a function of one tensor.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an unknown density; an activation that is not strictly increasing on the grid, or not
            differentiable; or a ``step`` so large that the inverse would cease to increase.

    Example:
        >>> import torch
        >>> better = eafo_correction(lambda x: x, step=0.1)
        >>> better(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.9758])

    Paper: arXiv 2405.12954, entropy-based activation function optimization. The sign follows the derivation: a step
    along η lowers the entropy, while CRReLU's start of +0.01 raises it.
    """
    known = density_of(density)
    check_number("reach", reach, low=0.0, low_open=True, high_open=True)
    check_sizes(points=points)
    if not callable(activation):
        bad_type("activation", activation, "a function of one tensor")
    ends = max(-reach, known.low), min(reach, known.high)
    inputs = torch.linspace(*ends, max(points, 3), dtype=torch.float64)
    values, first, second = _derivatives(activation, inputs)
    if not bool((values.diff() > 0).all() and (first > 0).all()):
        raise ArgumentValueError(f"activation must be strictly increasing on [{ends[0]:g}, {ends[1]:g}]")
    p, p_slope, _ = _derivatives(known.pdf, inputs)
    # y' = 1 / f'(y) and y'' / y' = -f''(y) / f'(y)²
    eta = p * second / first.square() - p_slope / first
    largest = _largest_step(inputs, eta)
    if step is None:
        step = min(1.0, _SAFE * largest)
    elif check_number("step", step, low=0.0, low_open=True, high_open=True) >= largest:
        raise ArgumentValueError(f"step must be below {largest:.4g}, from where the inverse ceases to increase")
    return CorrectedActivation(values, inputs, eta, float(step))


def _derivatives(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, slopes and second derivatives of an entrywise function."""
    with torch.enable_grad():
        leaf = inputs.clone().requires_grad_()
        values = function(leaf)
        if not isinstance(values, Tensor) or values.shape != inputs.shape:
            raise ArgumentValueError("activation must map a tensor entry by entry")
        zero = 0.0 * leaf  # so that a constant, and the slope of a line, have a gradient
        (first,) = torch.autograd.grad((values + zero).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first + zero).sum(), leaf)
    if not bool(torch.stack((values, first, second)).isfinite().all()):
        raise ArgumentValueError("activation must be finite, with finite derivatives, on the grid")
    return values.detach().double(), first.detach().double(), second.double()


def _largest_step(inverse: Tensor, eta: Tensor) -> float:
    """The step from which on ``inverse + step · eta`` no longer increases; infinity if it always does."""
    rise, change = inverse.diff(), eta.diff()
    falling = change < 0
    return float((rise[falling] / -change[falling]).min()) if bool(falling.any()) else math.inf
