"""Laws of maps and reductions of rows, and of elementwise maps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softgate.testing.budgets import Scale, band, close
from softgate.testing.laws._law import law
from softgate.testing.report import fail
from softgate.testing.strategies import RowDraw
from softgate.testing.subject import Subject

__all__ = [
    "even",
    "exponentials_sum_to_one",
    "gradient_sums_to_zero",
    "in_range",
    "masked_equals_removed",
    "maximum_bounds",
    "nonnegative",
    "odd",
    "order_preserving",
    "permutation_equivariant",
    "permutation_invariant",
    "shift_equivariant",
    "shift_invariant",
    "sums_to_one",
]


def apply(op: Subject, x: Tensor) -> Tensor:
    """The op along the last dimension of ``x``, or elementwise."""
    result = op(x) if op.record.family == "scalar_map" else op(x, -1)
    return result if isinstance(result, Tensor) else result[0]


def _unmasked(x: Tensor) -> Tensor:
    """Rows with at least one entry above -inf; the others are a matter of the masked-row policy."""
    return x[(x > float("-inf")).any(-1)]


@law("row_map", draws="finite_rows")
def sums_to_one(op: Subject, draw: RowDraw) -> None:
    """The entries of every row sum to one."""
    total = apply(op, draw.x).double().sum(-1)
    if not bool(((total - 1).abs() <= band(torch.float32, draw.x.shape[-1])).all()):
        fail("rows do not sum to one", x=draw.x, total=total)


@law("row_map", draws="bounded_rows")
def exponentials_sum_to_one(op: Subject, draw: RowDraw) -> None:
    """The exponentials of every row sum to one: the map gives log-probabilities."""
    total = apply(op, draw.x).double().exp().sum(-1)
    # an absolute error of the logarithm is a relative one of the probability
    allowed = band(torch.float32, draw.x.shape[-1]) * (1 + float(draw.x.abs().max()))
    if not bool(((total - 1).abs() <= allowed).all()):
        fail("exponentials of the rows do not sum to one", x=draw.x, total=total)


@law("row_map", "row_reduction", "scalar_map", draws="finite_rows")
def nonnegative(op: Subject, draw: RowDraw) -> None:
    """No entry is negative."""
    y = apply(op, draw.x)
    if not bool((y >= 0).all()):
        fail("an entry is negative or NaN", x=draw.x, y=y)


def _has_range(op: Subject) -> bool:
    return op.record.output_range != (float("-inf"), float("inf"))


@law("row_map", "row_reduction", "scalar_map", draws="any_rows", always=True, applies=_has_range)
def in_range(op: Subject, draw: RowDraw) -> None:
    """Every entry that is not NaN lies in ``output_range``; a bound of zero is kept exactly, others to one rounding."""
    low, high = op.record.output_range
    y = apply(op, draw.x)
    eps = torch.finfo(y.dtype).eps
    inside = (y >= low - eps * abs(low) if low > float("-inf") else torch.ones_like(y, dtype=torch.bool)) & (
        y <= high + eps * abs(high) if high < float("inf") else torch.ones_like(y, dtype=torch.bool)
    )
    if not bool((inside | y.isnan()).all()):
        fail(f"an entry lies outside [{low}, {high}]", x=draw.x, y=y)


def _shifts(draw: RowDraw) -> Iterator[tuple[Tensor, float, float]]:
    """Rows, a shift of them, and the relative error that rounding ``x + c`` puts into ``exp(x + c)``.

    The rows come as drawn and folded into [0, 8), where little is lost in rounding and small faults show.
    """
    c = float(torch.randint(-1000, 1001, (), generator=draw.generator)) * 10.0 ** float(draw.seed % 3 - 2)
    for x in (draw.x, draw.x.remainder(8)):
        yield x, c, torch.finfo(torch.float32).eps * (float(x.abs().max()) + 2 * abs(c))


@law("row_map", draws="bounded_rows")
def shift_invariant(op: Subject, draw: RowDraw) -> None:
    """Adding one number to a row changes nothing, for scores and shifts up to 1e4, as exactly as x + c is rounded."""
    for x, c, rounding in _shifts(draw):
        a, b = apply(op, x), apply(op, x + c)
        if not close(a, b, terms=x.shape[-1], scale="tensor", extra=4 * rounding):
            fail(f"adding {c} to the rows changes the result", x=x, before=a, after=b)


@law("row_reduction", draws="bounded_rows")
def shift_equivariant(op: Subject, draw: RowDraw) -> None:
    """Adding one number to a row adds it to the result."""
    for x, c, rounding in _shifts(draw):
        a, b = apply(op, x).double() + c, apply(op, x + c).double()
        allowed = 2 * band(torch.float32, x.shape[-1]) * (a.abs() + b.abs() + abs(c)) + 2 * rounding
        if not bool(((a - b).abs() <= allowed).all()):
            fail(f"adding {c} to the rows does not add it to the result", x=x, expected=a, got=b)


@law("row_map", draws="masked_rows")
def permutation_equivariant(op: Subject, draw: RowDraw) -> None:
    """Permuting the entries of a row permutes the result."""
    order = torch.randperm(draw.x.shape[-1], generator=draw.generator)
    a, b = apply(op, draw.x)[..., order], apply(op, draw.x[..., order])
    if not close(a, b, terms=draw.x.shape[-1], scale=_entry_scale(op)):
        fail("permuting the entries does not permute the result", x=draw.x, order=order, expected=a, got=b)


@law("row_reduction", draws="masked_rows")
def permutation_invariant(op: Subject, draw: RowDraw) -> None:
    """Permuting the entries of a row changes nothing."""
    order = torch.randperm(draw.x.shape[-1], generator=draw.generator)
    a, b = apply(op, draw.x), apply(op, draw.x[..., order])
    largest = float(draw.x[draw.x.isfinite()].abs().max()) if bool(draw.x.isfinite().any()) else 0.0
    rounding = 2 * band(torch.float32, draw.x.shape[-1]) * (1 + largest)
    same = (a.double() - b.double()).abs() <= rounding
    if not bool((same | (a == b) | (a.isnan() & b.isnan())).all()):
        fail("permuting the entries changes the result", x=draw.x, order=order, expected=a, got=b)


def _entry_scale(op: Subject) -> Scale:
    return op.record.error_scale or ("relative" if op.record.output_range[0] >= 0 else "tensor")


@law("row_map", "scalar_map", draws="finite_rows")
def order_preserving(op: Subject, draw: RowDraw) -> None:
    """A larger score never gets a smaller value, up to rounding; equal scores get equal values."""
    y = apply(op, draw.x).double()
    x = draw.x
    rounding = 2 * band(torch.float32, 1) * torch.maximum(y[..., :, None].abs(), y[..., None, :].abs())
    rounding = rounding + torch.finfo(torch.float32).tiny
    gap = y[..., :, None] - y[..., None, :]
    wrong = (x[..., :, None] >= x[..., None, :]) & (gap < -rounding)
    if bool(wrong.any()) or bool(y.isnan().any()):
        fail("a larger score got a smaller value", x=x, y=y)


@law("row_reduction", draws="bounded_rows")
def maximum_bounds(op: Subject, draw: RowDraw) -> None:
    """The result lies between the largest entry and the largest entry plus log(n)."""
    y = apply(op, draw.x).double()
    low = draw.x.double().amax(-1)
    high = low + torch.log(torch.tensor(float(draw.x.shape[-1]), dtype=torch.float64))
    slack = band(torch.float32, draw.x.shape[-1]) * (low.abs() + 1)
    if not bool(((y >= low - slack) & (y <= high + slack)).all()):
        fail("the result is not between max(x) and max(x) + log(n)", x=draw.x, y=y)


@law("row_map", "row_reduction", draws="masked_rows")
def masked_equals_removed(op: Subject, draw: RowDraw) -> None:
    """An entry of -inf gets the lowest value of the range (weight 0) and the others are as if it were not there."""
    for row in _unmasked(draw.x):
        kept = row > float("-inf")
        whole, short = apply(op, row), apply(op, row[kept])
        inner = whole if op.record.family == "row_reduction" else whole[kept]
        largest = float(row[kept].abs().max())
        signed = op.record.family == "row_reduction" or op.record.output_range[0] < 0
        extra = torch.finfo(torch.float32).eps * largest if signed else 0.0
        if not close(inner, short, terms=len(row), extra=extra):
            fail("masked entries change the others", x=row, with_masked=inner, removed=short)
        if op.record.family == "row_map":
            masked = whole[~kept]
            if not bool((masked == op.record.output_range[0]).all()):
                fail(f"a masked entry is not exactly {op.record.output_range[0]}", x=row, y=whole)


@law("row_map", draws="bounded_rows")
def gradient_sums_to_zero(op: Subject, draw: RowDraw) -> None:
    """The gradient of any function of the result sums to zero over a row: the map ignores shifts."""
    x = draw.x.clone().requires_grad_()
    y = apply(op, x)
    seed = (torch.randint(-8, 9, y.shape, generator=draw.generator) / 8).to(y.dtype)
    (g,) = torch.autograd.grad(y, x, seed)
    rounding = 4 * band(torch.float32, x.shape[-1]) * (1 + g.abs().sum(-1))
    if not bool((g.double().sum(-1).abs() <= rounding).all()):
        fail("the gradient does not sum to zero", x=draw.x, gradient=g)


@law("scalar_map", draws="finite_rows")
def odd(op: Subject, draw: RowDraw) -> None:
    """f(-x) = -f(x)."""
    a, b = apply(op, -draw.x), -apply(op, draw.x)
    if not close(a, b, terms=1, scale="relative"):
        fail("f(-x) is not -f(x)", x=draw.x, got=a, expected=b)


@law("scalar_map", draws="finite_rows")
def even(op: Subject, draw: RowDraw) -> None:
    """f(-x) = f(x)."""
    a, b = apply(op, -draw.x), apply(op, draw.x)
    if not close(a, b, terms=1, scale="relative"):
        fail("f(-x) is not f(x)", x=draw.x, got=a, expected=b)
