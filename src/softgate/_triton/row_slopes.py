"""Gradients of the rows of dense logits from what :mod:`softgate._triton.row_sums` kept of them."""

# mypy: disable-error-code="no-untyped-def"
# Functions that Triton compiles take no annotations but tl.constexpr.
from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.row_sums import tile

__all__: list[str] = []


@triton.jit
def hinge_slope(violation, MODE: tl.constexpr):
    """Derivative of the hinge, or half of that of its square (MODE 1)."""
    if MODE == 1:
        return tl.where(violation < 0.0, 0.0, violation)
    return tl.where(violation >= 0.0, 1.0, 0.0)


@triton.jit
def slopes_of(
    x, is_target, factor, at_target, pivot, unit, constant, first, KIND: tl.constexpr, MODE: tl.constexpr
):  # fmt: skip
    """Gradient of a tile; rows ``(ROWS, 1)``."""
    if KIND == 0:
        slopes = factor * tl.exp(x * first - pivot)
    elif KIND == 1:
        below = 1.0 - tl.where(x < 0.0, x, 0.0)
        slopes = factor / (below * below)
    elif KIND == 2:
        slopes = factor * ((x + first) * unit)
    elif KIND == 3:
        slopes = factor * ((x - pivot) * unit) + constant
    else:
        slopes = factor * hinge_slope(first + x, MODE)
        at_target = -factor * hinge_slope(first - x, MODE)
    return tl.where(is_target, at_target, slopes)


@triton.jit
def upstream(grad_ptr, sums_ptr, index, inside, REDUCTION: tl.constexpr):
    """Gradient of the row losses: of each (0), of their sum (1), of their mean (2; 3 where a mean of none is 0)."""
    if REDUCTION == 0:
        return tl.load(grad_ptr + index, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr).to(tl.float32)
    if REDUCTION >= 2:
        weights = tl.load(sums_ptr + 1)
        if REDUCTION == 3:
            weights = tl.where(weights == 0.0, 1.0, weights)
        grad = grad / weights
    return tl.where(inside, grad, 0.0)


@triton.jit
def kept(kept_ptr, number, rows, index, inside, PRESENT: tl.constexpr):
    """One number kept of each row, 0 if the loss has none."""
    if PRESENT:
        return tl.load(kept_ptr + number * rows + index, mask=inside, other=0.0)
    return tl.zeros_like(index).to(tl.float32)


@triton.jit
def slopes_kernel(
    x_ptr, target_ptr, grad_ptr, sums_ptr, kept_ptr, out_ptr, stride_outer, stride_inner, stride_class,
    strideto_outer, strideto_inner, strideto_class, inner, classes, rows, ignore, first,
    KIND: tl.constexpr, MODE: tl.constexpr, REDUCTION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of logits, exactly 0 in ignored rows."""
    blocks = (inner + ROWS - 1) // ROWS
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    within = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    index, inside = outer * inner + within, within < inner
    target = tl.load(target_ptr + index, mask=inside, other=0).to(tl.int64)
    keep = inside & (target != ignore)
    grad = upstream(grad_ptr, sums_ptr, index, keep, REDUCTION)
    factor = kept(kept_ptr, 2, rows, index, keep, True) * grad
    at_target = kept(kept_ptr, 3, rows, index, keep, KIND != 4) * grad
    pivot = kept(kept_ptr, 4, rows, index, keep, KIND == 0 or KIND == 3)
    unit = kept(kept_ptr, 5, rows, index, keep, KIND == 2 or KIND == 3)
    constant = kept(kept_ptr, 6, rows, index, keep, KIND == 3) * grad
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offsets = outer * stride_outer + within.to(tl.int64) * stride_inner
    x = tile(x_ptr, offsets, columns, stride_class, keep, classes)
    is_target = columns[None, :] == target.to(tl.int32)[:, None]
    slopes = slopes_of(
        x, is_target, factor[:, None], at_target[:, None], pivot[:, None], unit[:, None], constant[:, None], first,
        KIND, MODE,
    )  # fmt: skip
    slopes = tl.where(keep[:, None], slopes, 0.0)
    places = (outer * strideto_outer + within.to(tl.int64) * strideto_inner)[:, None]
    places += columns.to(tl.int64)[None, :] * strideto_class
    tl.store(out_ptr + places, slopes.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (columns < classes)[None, :])
