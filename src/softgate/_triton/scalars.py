"""Logarithms and exponentials near their zeros, which Triton has no functions for."""

# mypy: disable-error-code="no-untyped-def"
# Functions that Triton compiles take no annotations but tl.constexpr.
from __future__ import annotations

import triton
import triton.language as tl

__all__: list[str] = []


@triton.jit
def log1p_of(x):
    """``log(1 + x)`` for x >= 0 without losing small x: the rounding of 1 + x is divided out."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.where(y == float("inf"), y, tl.log(y) * (x / (y - 1.0))))


@triton.jit
def expm1_of(x):
    """``exp(x) - 1``, a series near 0."""
    series = x * (1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0 + x * (1.0 / 5040.0))))
    series = x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + series)))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1.0)
