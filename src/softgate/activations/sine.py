"""The sine as an activation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number
from softgate._math import masks
from softgate.registry import method

__all__ = ["SineActivation", "sine_activation"]

#: Largest c: the dual's sinh(c) must be a float64.
LARGEST = 300.0


def check_frequency(c: Any, name: str = "c") -> float:
    """``c`` if it is a number in (0, 300]."""
    return check_number(name, c, low=0.0, high=LARGEST, low_open=True)


@method(
    site="activations",
    family="scalar_map",
    paper="optimal-classifiers",
    source="arXiv 2204.14126, sine activations; dual sinh(c ξ) / sinh(c)",
    variants={"default": {}, "slow": {"c": 1.0}},
    laws=("odd",),
    error_scale="tensor",
)
def sine_activation(x: Tensor, c: float = 2.676) -> Tensor:
    r"""Sine of unit mean square: ``√(2 / (1 - e^{-2c})) sin(√c x)``.

    ``c`` is the square of the frequency, as in the names ``"sine_1"``, ``"sine_2.676"`` of dual activations. The
    infinitely deep network is consistent for inputs on the sphere of dimension 3 with c = 2.676, of dimension 5 with
    6.135 and of dimension 9 with 13.826.

    Args:
        x: any shape, real floating point.
        c: squared frequency, in (0, 300].

    Returns:
        Of the shape and dtype of ``x``; 16-bit types are computed in float32. NaN and infinities give NaN.

    Raises:
        ArgumentTypeError: ``x`` is not a real floating-point tensor, or ``c`` no number.
        ArgumentValueError: ``c`` is out of range.

    Example:
        >>> import torch
        >>> sine_activation(torch.tensor([0.0, 1.0]), c=1.0)
        tensor([0.0000, 1.2798])

    Paper: Radhakrishnan, Belkin, Uhler, arXiv 2204.14126.
    """
    check_float_tensor("x", x)
    c = check_frequency(c)
    with masks.without_autocast(x):
        wide = x.to(masks.accumulation_dtype(x.dtype))
        return (math.sqrt(-2.0 / math.expm1(-2.0 * c)) * torch.sin(math.sqrt(c) * wide)).to(x.dtype)


class SineActivation(nn.Module):
    """Module form of :func:`sine_activation`.

    Args:
        c: squared frequency, in (0, 300].

    Example:
        >>> import torch
        >>> SineActivation(1.0)(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 1.2798])
    """

    def __init__(self, c: float = 2.676) -> None:
        super().__init__()
        self.c = check_frequency(c)

    def forward(self, x: Tensor) -> Tensor:
        """The sine, entry by entry."""
        return sine_activation(x, self.c)

    def extra_repr(self) -> str:
        """The squared frequency, for ``repr``."""
        return f"c={self.c}"
