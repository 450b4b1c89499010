"""How much entropy an activation leaves of a random input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_sizes
from softgate._math.densities import DENSITIES, density_of
from softgate.errors import ArgumentValueError, bad_type

__all__ = ["OutputEntropy", "activation_entropy"]

#: Mass that may be left out: at the far ends of the line outputs differ by less than float64 can tell.
_LEFT_OUT = 1e-9
_FEWEST_SAMPLES = 100


class OutputEntropy(NamedTuple):
    """Differential entropies in nats; see :func:`activation_entropy`.

    Attributes:
        whole: of the output; ``-inf`` where the activation is constant on inputs of positive probability.
        increasing: of the output, given that the input lies where the activation increases; NaN if it never does.
        share: probability of such inputs.
    """

    whole: float
    increasing: float
    share: float


def activation_entropy(
    activation: Callable[[Tensor], Tensor], density: str | Tensor = "normal", *, cells: int = 16384
) -> OutputEntropy:
    r"""Differential entropy of ``f(X)`` for a random ``X``, in nats.

    Where f increases and no other input gives the same output it is ``h(X) + E[log f'(X)]``; in general the densities
    of all inputs with one output are added. The line is cut into cells, on each of which f counts as linear, so that f
    need not be smooth; error about ``1 / cells²``. ReLU sends half of a normal variable to one point, which leaves
    ``-inf``: compare such activations by their increasing part.

    Args:
        activation: function of one float64 tensor, entry by entry, or a module, of which a float64 copy is made.
        density: of X: ``"normal"``, ``"half_normal"``, ``"logistic"``, ``"uniform"`` (unit variance); or a sample of
            X, such as the inputs of an activation in a model, any shape, at least 100 finite numbers: then between the
            quantiles of the sample the density is constant. Values that repeat so often that quantiles coincide are
            points of positive probability.
        cells: into how many the line is cut; of a sample, at most the square root of its size.

    Returns:
        Entropy of the whole output, that of the part where f increases, and the probability of that part.

    Raises:
        ArgumentTypeError: not a function, or a density that is neither a name nor a real floating-point tensor.
        ArgumentValueError: an unknown name, too few samples or some that are not finite, or an activation whose values
            are not finite or not entry by entry.

    Example:
        >>> import torch
        >>> round(activation_entropy(lambda x: x).whole, 4)  # log(2 π e) / 2
        1.4189
        >>> [round(value, 4) for value in activation_entropy(torch.relu)]
        [-inf, 0.7258, 0.5]

    Paper: A Method on Searching Better Activation Functions, arXiv 2405.12954, entropy of the output of a layer.
    """
    if not callable(activation):
        bad_type("activation", activation, "a function of one tensor or an nn.Module")
    check_sizes(cells=cells)
    edges, masses = _pieces(density, cells)
    if isinstance(activation, nn.Module):
        activation = copy.deepcopy(activation).double()
    with torch.no_grad():
        values = activation(edges)
    if not isinstance(values, Tensor) or values.shape != edges.shape:
        raise ArgumentValueError("activation must map a tensor entry by entry")
    values = values.double()
    if not bool(values.isfinite().all()):
        raise ArgumentValueError(f"activation must be finite on [{float(edges[0]):g}, {float(edges[-1]):g}]")
    rise = values.diff()
    rising = (rise > 0) & (masses > 0)
    share = float(masses[rising].sum())
    increasing = _entropy(values, masses * rising / share) if share > _LEFT_OUT else math.nan
    return OutputEntropy(_entropy(values, masses), increasing, min(share, 1.0))


def _pieces(density: str | Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Edges of the cells, and the probability of each."""
    if isinstance(density, str):
        known = density_of(density)
        edges = torch.linspace(known.low, known.high, cells + 1, dtype=torch.float64)
        masses = known.cdf(edges).diff()
    elif isinstance(density, Tensor):
        edges, masses = _quantiles(density, cells)
    else:
        bad_type("density", density, f"one of {', '.join(map(repr, DENSITIES))}, or a tensor of samples")
    return edges, masses / masses.sum()


def _quantiles(sample: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    sample = check_float_tensor("density", sample).detach().double().cpu().flatten()
    if len(sample) < _FEWEST_SAMPLES or not bool(sample.isfinite().all()):
        raise ArgumentValueError(f"density must hold at least {_FEWEST_SAMPLES} finite samples, got {len(sample)}")
    count = min(cells, math.isqrt(len(sample)))
    place = torch.linspace(0, len(sample) - 1, count + 1).round().long()
    # quantiles that are one number are a point of positive probability, a cell without width
    return sample.sort().values[place], place.diff().double()


def _entropy(values: Tensor, masses: Tensor) -> float:
    """Entropy of the output, ``masses[i]`` of which is spread evenly between ``values[i]`` and ``values[i + 1]``."""
    width = values.diff().abs()
    flat = width == 0
    if float(masses[flat].sum()) > _LEFT_OUT:
        return -math.inf
    kept = ~flat & (masses > 0)
    left, right = torch.minimum(values[:-1], values[1:])[kept], torch.maximum(values[:-1], values[1:])[kept]
    share, width = masses[kept], width[kept]
    if bool((left[1:] >= right[:-1]).all()) or bool((right[1:] <= left[:-1]).all()):
        return float((share * (width / share).log()).sum())
    # cells overlap: the density is constant between neighbouring ends of any two of them
    ends, order = torch.cat((left, right)).sort()
    height = torch.cat((share / width, -share / width))[order].cumsum(0)[:-1].clamp_min(0.0)
    part = height * ends.diff()
    return float(-torch.special.xlogy(part, height).sum())
