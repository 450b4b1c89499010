"""Densities of one real variable that activations are judged under, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from softgate.errors import check_choice

__all__: list[str] = []

_ROOT_3 = math.sqrt(3.0)


class Density(NamedTuple):
    """A density on the line.

    Attributes:
        pdf: its values, by operations that can be differentiated.
        cdf: its distribution function.
        low: where the support begins; for an unbounded one, where less than 1e-15 of the mass is left.
        high: where it ends, likewise.
    """

    pdf: Callable[[Tensor], Tensor]
    cdf: Callable[[Tensor], Tensor]
    low: float
    high: float


def _normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)


def _logistic_pdf(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


DENSITIES: dict[str, Density] = {
    "normal": Density(_normal_pdf, torch.special.ndtr, -8.0, 8.0),
    "half_normal": Density(lambda x: 2.0 * _normal_pdf(x), lambda x: torch.erf(x / math.sqrt(2.0)), 0.0, 8.0),
    "logistic": Density(_logistic_pdf, torch.sigmoid, -36.0, 36.0),
    "uniform": Density(
        lambda x: torch.full_like(x, 0.5 / _ROOT_3), lambda x: (x / _ROOT_3 + 1.0) / 2.0, -_ROOT_3, _ROOT_3
    ),
}


def density_of(name: str) -> Density:
    """The density called ``name``: ``normal``, ``half_normal`` (its absolute value), ``logistic`` or ``uniform``.

    The standard ones; the uniform has unit variance.
    """
    check_choice("density", name, tuple(DENSITIES))
    return DENSITIES[name]
