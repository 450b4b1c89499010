"""Dual activations: what an activation does to the correlation of two infinitely wide layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor
from softgate.activations.hermite import NAMED_POWERS, HermiteActivation, check_coefficients, horner
from softgate.activations.sine import SineActivation, check_frequency
from softgate.errors import ArgumentValueError

__all__ = ["DualActivation", "dual_activation"]

_ERF_SCALE = math.asin(2 / 3)
_HERMITE = re.compile(r"hermite_(\d{1,3})")
_SINE = re.compile(r"sine_(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class DualActivation:
    r"""``dual(ξ) = E[φ(u) φ(v)]`` for standard normal (u, v) with correlation ξ and ``E[φ²] = 1``; callable.

    Made by :func:`dual_activation`.

    Attributes:
        family: ``"hermite"``, ``"sine"``, ``"erf"`` or ``"relu"``.
        powers: of the Hermite family, the squared coefficients: ``dual(ξ) = Σ_k powers[k] ξ^k``.
        c: of the sine family, the squared frequency: ``sinh(c ξ) / sinh(c)``.
    """

    family: Literal["hermite", "sine", "erf", "relu"]
    powers: tuple[float, ...] = ()
    c: float = 0.0

    def __call__(self, xi: Tensor) -> Tensor:
        """``dual(ξ)`` of correlations in [-1, 1], any shape, in their dtype."""
        check_float_tensor("xi", xi)
        if self.family == "hermite":
            return horner(xi, self.powers)
        if self.family == "sine":
            return torch.sinh(self.c * xi) / math.sinh(self.c)
        if self.family == "erf":
            return torch.asin(2.0 * xi / 3.0) / _ERF_SCALE
        # 1 - ξ² may round below 0
        return ((1.0 - xi.square()).clamp_min(0.0).sqrt() + xi * (math.pi - torch.acos(xi))) / math.pi

    def derivative(self, xi: Tensor) -> Tensor:
        """``dual'(ξ) = E[φ'(u) φ'(v)]``."""
        check_float_tensor("xi", xi)
        if self.family == "hermite":
            slopes = [k * p for k, p in enumerate(self.powers)][1:]
            return horner(xi, slopes) if len(slopes) > 1 else torch.full_like(xi, slopes[0])
        if self.family == "sine":
            return self.c * torch.cosh(self.c * xi) / math.sinh(self.c)
        if self.family == "erf":
            return (2.0 / 3.0 / _ERF_SCALE) / (1.0 - 4.0 * xi.square() / 9.0).sqrt()
        return (math.pi - torch.acos(xi)) / math.pi

    @property
    def constant(self) -> float:
        """``dual(0) = E[φ]²``."""
        return self._at(self, 0.0)

    @property
    def slope(self) -> float:
        """``a = dual'(0) = E[φ']²``: how fast correlations die out with depth."""
        return self._at(self.derivative, 0.0)

    @property
    def stretch(self) -> float:
        """``b = dual'(1) = E[φ'²]``: how fast neighbours are told apart with depth."""
        return self._at(self.derivative, 1.0)

    @property
    def leading(self) -> tuple[int, float]:
        """Degree and coefficient of the lowest power: what the dual does to small correlations."""
        if self.family == "hermite":
            return next((k, p) for k, p in enumerate(self.powers) if p > 0.0)
        return (0, self.constant) if self.family == "relu" else (1, self.slope)

    @property
    def correction(self) -> tuple[int, float]:
        """``(g, r)``: beside the leading power the rest is ``r ξ^g`` for small ξ; r is 0 if there is no rest."""
        if self.family == "hermite":
            degree, power = self.leading
            rest = ((k - degree, p / power) for k, p in enumerate(self.powers) if k > degree and p > 0.0)
            return next(rest, (1, 0.0))
        if self.family == "sine":
            return 2, self.c**2 / 6.0
        return (2, 2.0 / 27.0) if self.family == "erf" else (1, 0.5 / self.constant)

    @staticmethod
    def _at(function: object, point: float) -> float:
        assert callable(function)
        return float(function(torch.tensor(point, dtype=torch.float64)))


def dual_activation(activation: str | Sequence[float] | nn.Module | DualActivation) -> DualActivation:
    r"""The dual of an activation, normalised to ``dual(1) = 1``.

    .. math:: \phi = \sum_k c_k\, he_k \ \Rightarrow\ \mathrm{dual}(\xi) = \sum_k c_k^2\, \xi^k \Big/ \sum_k c_k^2

    Args:
        activation: a name (``"2d_opt"``, ``"3d_opt"``, ``"5d_opt"``, ``"9d_opt"``, ``"hermite_K"`` for he_K,
            ``"sine_C"`` for a squared frequency C, ``"erf"``, ``"relu"``), Hermite coefficients c_0, c_1, …, or one of
            :class:`HermiteActivation`, :class:`SineActivation`, ``torch.nn.ReLU``.

    Returns:
        A callable with ``.derivative`` and the numbers ``.constant``, ``.slope`` and ``.stretch``.

    Raises:
        ArgumentTypeError: something else.
        ArgumentValueError: an unknown name, or coefficients that are not finite or vanish beyond the constant.

    Example:
        >>> import torch
        >>> dual = dual_activation("3d_opt")
        >>> dual(torch.tensor([0.0, 0.5, 1.0])), dual.slope, dual.stretch
        (tensor([0.0000, 0.3125, 1.0000]), 0.5, 2.0)

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126.
    """
    if isinstance(activation, DualActivation):
        return activation
    if isinstance(activation, str):
        return _named(activation)
    if isinstance(activation, SineActivation):
        return DualActivation("sine", c=activation.c)
    if isinstance(activation, nn.ReLU):
        return DualActivation("relu")
    if isinstance(activation, HermiteActivation):
        activation = activation.coefficients
    coefficients = check_coefficients(activation, "activation")
    largest = max(map(abs, coefficients))  # their squares may overflow
    squares = [(c / largest) ** 2 for c in coefficients]
    return _series([square / math.fsum(squares) for square in squares])


def _named(name: str) -> DualActivation:
    if name in NAMED_POWERS:
        return _series(NAMED_POWERS[name])
    if name in ("erf", "relu"):
        return DualActivation(name)  # type: ignore[arg-type]
    if (found := _HERMITE.fullmatch(name)) and int(found[1]) > 0:
        return _series([0.0] * int(found[1]) + [1.0])
    if found := _SINE.fullmatch(name):
        return DualActivation("sine", c=check_frequency(float(found[1]), "activation"))
    known = ", ".join(map(repr, NAMED_POWERS))
    raise ArgumentValueError(
        f"activation must be one of {known}, 'erf', 'relu', 'hermite_K' or 'sine_C' with numbers K, C > 0; got {name!r}"
    )


def _series(powers: Sequence[float]) -> DualActivation:
    return DualActivation("hermite", powers=tuple(powers))
