"""Error budgets, derived from a float64 reference; no tolerance is typed in a test.

A result may be off by twice the error that an independent implementation (the plain-torch reference, run in the same
dtype) makes against float64, plus a rounding band. The band is the project's accuracy target for a sum of n rounded
terms, ``4 + log2(n) / 2`` units of ``eps``; 16-bit results are summed in float32 and rounded once.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from softgate.testing.report import fail

__all__ = ["Scale", "band", "check_within_budget", "close", "ulp", "ulp_error"]

#: What an error is measured against. ``relative``: each entry. ``tensor``: the largest entry of the tensor, for results
#: that are sums of terms of either sign, where an entry can be small by cancellation. ``logarithm``: each entry, or 1
#: where the entry is smaller: the relative error of a sum is the absolute error of its logarithm.
Scale = Literal["relative", "tensor", "logarithm"]


def band(dtype: torch.dtype, terms: int) -> float:
    """Relative rounding band of a result in ``dtype`` that sums ``terms`` rounded terms."""
    narrow = dtype.itemsize < 4
    summed = (4 + math.log2(max(terms, 1)) / 2) * torch.finfo(torch.float32 if narrow else dtype).eps
    return summed + torch.finfo(dtype).eps if narrow else summed


def check_within_budget(
    actual: Tensor,
    reference: Tensor,
    truth: Tensor,
    *,
    terms: int,
    scale: Scale,
    what: str = "result",
    size_at_least: float = 0.0,
) -> None:
    """Fail unless ``actual`` is as near to ``truth`` as the budget allows.

    Args:
        actual: what the op gave.
        reference: what the reference gives in the same dtype.
        truth: what the reference gives in float64.
        terms: how many terms an output entry sums, for the rounding band.
        scale: what an error is measured against.
        what: how the message names the result.
        size_at_least: for ``scale="tensor"``, a size below which the tensor's own is not taken: an exact result of
            zero may be the difference of terms of this size.
    """
    if actual.shape != truth.shape:
        fail(f"{what} has shape {tuple(actual.shape)}, the reference gives {tuple(truth.shape)}")
    if actual.dtype != reference.dtype:
        fail(f"{what} has dtype {actual.dtype}, the reference gives {reference.dtype}")
    if not actual.dtype.is_floating_point:
        if not torch.equal(actual, reference):
            fail(f"{what} differs from the reference", actual=actual, expected=reference)
        return
    dtype = actual.dtype
    got, low, exact = (t.detach().double() for t in (actual, reference, truth))
    rounded = exact.to(dtype).double()
    _check_same_special_values(got, rounded, what)
    finite = rounded.isfinite()
    got, low, exact = got[finite], low[finite], exact[finite]
    if got.numel() == 0:
        return
    low = torch.where(low.isfinite(), low, exact)
    tiny = torch.finfo(dtype).tiny
    size = _size(exact.abs(), scale, size_at_least)
    counted = size >= tiny  # below the normal range a result may be flushed to zero
    relative = torch.where(counted, (low - exact).abs() / size.clamp_min(tiny), 0.0).max()
    allowed = (2 * relative + band(dtype, terms)) * size + tiny
    error = (got - exact).abs()
    if not bool((error <= allowed).all()):
        worst = int((error - allowed).argmax())
        fail(
            f"{what} is off by {error[worst]:.3e} where {allowed[worst]:.3e} is allowed (twice the reference's error "
            f"plus rounding): got {got[worst]:.9g}, float64 gives {exact[worst]:.9g}, the reference in {dtype} "
            f"{low[worst]:.9g}"
        )


def _size(magnitude: Tensor, scale: Scale, at_least: float = 0.0) -> Tensor:
    """What each entry's error is measured against."""
    if scale == "tensor":
        return magnitude.max().clamp_min(at_least).expand_as(magnitude)
    return magnitude.clamp_min(1.0) if scale == "logarithm" else magnitude


def _check_same_special_values(got: Tensor, expected: Tensor, what: str) -> None:
    if not torch.equal(got.isnan(), expected.isnan()):
        fail(f"{what}: NaN at other places than the reference", actual=got, expected=expected)
    if not torch.equal(got.isposinf(), expected.isposinf()) or not torch.equal(got.isneginf(), expected.isneginf()):
        fail(f"{what}: infinities at other places than the reference", actual=got, expected=expected)


def close(a: Tensor, b: Tensor, *, terms: int, scale: Scale = "tensor", extra: float = 0.0) -> bool:
    """Whether two results of the same op agree within two rounding bands; NaN and infinities must coincide.

    Args:
        a: one result.
        b: the other result.
        terms: how many terms an entry sums.
        scale: what an error is measured against.
        extra: relative error that the caller itself put into the inputs (``x + c`` is rounded, for instance).
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = a.detach().double(), b.detach().double()
    finite = x.isfinite() & y.isfinite()
    special = ~finite
    if not torch.equal(x[special].nan_to_num(nan=7e300), y[special].nan_to_num(nan=7e300)):
        return False
    x, y = x[finite], y[finite]
    if x.numel() == 0:
        return True
    size = _size(torch.maximum(x.abs(), y.abs()), scale)
    info = torch.finfo(a.dtype)
    return bool(((x - y).abs() <= (2 * band(a.dtype, terms) + extra) * size + info.tiny).all())


def ulp(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of ``dtype`` at ``truth``; below the normal range that of the smallest normal number."""
    info = torch.finfo(dtype)
    exact = truth.double()
    _, exponent = torch.frexp(exact.abs().clamp_min(info.tiny))
    return torch.ldexp(torch.full_like(exact, info.eps), exponent - 1)


def ulp_error(actual: Tensor, truth: Tensor, rest: Tensor | None = None) -> Tensor:
    """Error of ``actual`` in units in the last place of its dtype.

    Args:
        actual: what the op gave.
        truth: the exact result, in float64.
        rest: what float64 cannot hold of the exact result, for float64 ops.
    """
    error = actual.double() - truth.double()  # exact for neighbours, so that subtracting the rest loses nothing
    return (error if rest is None else error - rest).abs() / ulp(truth, actual.dtype)
