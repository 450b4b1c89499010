"""Losses of the rows of dense logits, in one sweep over the classes: losses, and what backward needs of each row.

A program takes a block of rows. Sums and maxima are kept per lane of its tile and joined once at the end, in the same
order in every run. A row that overflows float32 in linear scale is swept again with its entries scaled down; nothing
is asked back from the GPU. ``KIND`` is the loss, ``MODE`` a branch of it:

    SOFTMAX     cross-entropy of first x, then Phi of order tau = 1 + second, at most third steep; MODE: its side of 1
    STABLEMAX   cross-entropy of s(x)
    QUADRATIC   cross-entropy of (x + first)^2 + second
    STANDARD    softplus(first (second - z)) / first of standard scores z, third beside the deviation
    HINGE       second sum_k max(0, first - y_k x_k), or of the squares (MODE 1)

The gradient of a row, upstream gradient aside, is made of the numbers kept, an array (K, rows), by
:mod:`softgate._triton.row_slopes`.
"""

# mypy: disable-error-code="no-untyped-def"
# Functions that Triton compiles take no annotations but tl.constexpr.
from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.scalars import expm1_of, log1p_of

__all__: list[str] = []

SOFTMAX, STABLEMAX, QUADRATIC, STANDARD, HINGE = range(5)
#: Numbers kept of a row: loss, weight, factor, gradient at the target, then pivot, unit, constant if the loss has them.
KEPT = {SOFTMAX: 5, STABLEMAX: 4, QUADRATIC: 6, STANDARD: 7, HINGE: 3}
#: Scale of rows whose sums overflow, for scores that grow with the logit and with its square.
SMALL = tl.constexpr(2.0**-64)
SMALLER = tl.constexpr(2.0**-80)
LOG_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def tile(x_ptr, offsets, columns, stride, keep, classes):
    """Logits of a tile in float32, zeros outside and in rows that do not count."""
    inside = keep[:, None] & (columns < classes)[None, :]
    places = offsets[:, None] + columns.to(tl.int64)[None, :] * stride
    return tl.load(x_ptr + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def rival(columns, classes, target):
    """Which entries of a tile are classes other than the row's target."""
    return (columns < classes)[None, :] & (columns[None, :] != target[:, None])


@triton.jit
def stable_score(x):
    """s(x): ``1 + x`` from 0 on, ``1 / (1 - x)`` below; NaN stays NaN."""
    return tl.where(x < 0.0, 1.0 / (1.0 - tl.minimum(x, 0.0)), 1.0 + x)


@triton.jit
def phi_of(loss, order, cap, MODE: tl.constexpr):
    """Phi of a cross-entropy and the factor of its gradient, see :mod:`softgate.losses._comp_sum_phi`."""
    log_p = -loss
    if MODE == 0:
        return loss, tl.zeros_like(loss) + 1.0
    if MODE == 1:
        return -expm1_of(order * log_p) / order, tl.exp(order * log_p)
    edge = tl.log(cap) / order
    beyond = log_p < edge
    inner = -expm1_of(order * tl.where(beyond, edge, log_p)) / order
    weight = tl.where(beyond, cap, tl.exp(order * log_p))
    return inner + tl.where(beyond, cap * (edge - log_p), 0.0), weight


@triton.jit
def softmax_rows(
    x_ptr, offsets, stride, keep, target, own, classes, factor, order, cap,
    MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss, factor, at target, pivot. The target stays out of the sum, so that ``1 - p`` of it is no difference."""
    top = tl.full([ROWS, BLOCK], LOWEST, tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tile(x_ptr, offsets, columns, stride, keep, classes) * factor
        x = tl.where(rival(columns, classes, target), x, float("-inf"))
        above = x - top
        e = tl.exp(-tl.abs(above))  # of the smaller over the larger
        total = tl.where(above > 0.0, total * e + 1.0, total + e)
        top = tl.maximum(top, x)
    highest = tl.max(top, 1)
    total = tl.sum(total * tl.exp(top - highest[:, None]), 1)
    own = own * factor
    pivot = tl.maximum(highest, own)
    rest = total * tl.exp(highest - pivot)
    gap = pivot - own
    whole = rest + tl.exp(-gap)
    loss = gap + tl.where(gap == 0.0, log1p_of(rest), tl.log(whole)) + (pivot - pivot)  # NaN if infinite
    loss, weight = phi_of(loss, order, cap, MODE)
    return loss, factor * weight / whole, -factor * weight * (rest / whole), pivot


@triton.jit
def stablemax_rows(
    x_ptr, offsets, stride, keep, target, own, classes, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Loss, factor, at target."""
    rest = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        s = stable_score(tile(x_ptr, offsets, columns, stride, keep, classes))
        rest += tl.where(rival(columns, classes, target), s, 0.0)
    rest = tl.sum(rest, 1)
    mine = stable_score(own)
    loss, whole = log1p_of(rest / mine), rest + mine
    share, inverse = rest / whole, 1.0 / whole
    fine = (loss < float("inf")) & (whole < float("inf"))
    if tl.min((fine | (keep == 0)).to(tl.int32)) == 0:
        unit = tl.where(whole < float("inf"), 1.0, SMALL)
        small, infinite = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, classes, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tile(x_ptr, offsets, columns, stride, keep, classes)
            counts = rival(columns, classes, target)
            limit = x == float("inf")
            small += tl.where(counts & (limit == 0), stable_score(x) * unit[:, None], 0.0)
            infinite += tl.where(counts & limit, 1.0, 0.0)
        small, infinite = tl.sum(small, 1), tl.sum(infinite, 1)
        lead = own == float("inf")
        scaled = mine * unit
        sums = small + scaled
        ratio = tl.log(sums) - tl.log(mine) - tl.log(unit)
        finite = tl.where(scaled > small, log1p_of(small / scaled), ratio)
        # +inf takes all the probability, several share it; NaN anywhere is NaN
        limit = tl.where(lead, log1p_of(infinite), float("inf")) + (small - small)
        at_limit = lead | (infinite > 0.0)
        again = tl.where(own == own, tl.where(at_limit, limit, finite), own)
        loss = tl.where(fine, loss, again)
        part = tl.where(at_limit, infinite / (infinite + tl.where(lead, 1.0, 0.0)), small / sums)
        share = tl.where(fine, share, part)
        inverse = tl.where(fine, inverse, tl.where(at_limit, 0.0, unit / sums))
    return loss, inverse, -share * tl.minimum(mine, 1.0 / mine)


@triton.jit
def quadratic_rows(
    x_ptr, offsets, stride, keep, target, own, classes, shift, floor, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Loss, factor, at target, unit."""
    rest = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        y = tile(x_ptr, offsets, columns, stride, keep, classes) + shift
        rest += tl.where(rival(columns, classes, target), y * y + floor, 0.0)
    rest = tl.sum(rest, 1)
    lead = own + shift
    mine = lead * lead + floor
    loss, whole = log1p_of(rest / mine), rest + mine
    share = rest / whole
    fine = (loss < float("inf")) & (whole < float("inf"))
    unit = tl.where(whole < float("inf"), 1.0, SMALLER)
    if tl.min((fine | (keep == 0)).to(tl.int32)) == 0:
        small = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, classes, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            y = (tile(x_ptr, offsets, columns, stride, keep, classes) + shift) * unit[:, None]
            small += tl.where(rival(columns, classes, target), y * y + (floor * unit * unit)[:, None], 0.0)
        small = tl.sum(small, 1)
        scaled = (lead * unit) * (lead * unit) + floor * unit * unit
        sums = small + scaled
        log_mine = tl.where(mine < float("inf"), tl.log(mine), 2.0 * tl.log(tl.abs(lead)))
        ratio = tl.log(sums) - log_mine - 2.0 * tl.log(unit)
        again = tl.where(scaled > small, log1p_of(small / scaled), ratio) + (sums - sums)  # NaN if infinite
        loss, whole = tl.where(fine, loss, again), tl.where(fine, whole, sums)
        share = tl.where(fine, share, small / sums)
    slope = tl.where(mine < float("inf"), lead / mine, 1.0 / lead)
    return loss, 2.0 * unit / whole, -2.0 * share * slope, unit


@triton.jit
def moments(
    x_ptr, offsets, stride, keep, own, unit, classes, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Mean and variance of ``(x - own) unit``, by Welford's recurrence in every lane."""
    mean, squares = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    count = 0.0
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        y = (tile(x_ptr, offsets, columns, stride, keep, classes) - own[:, None]) * unit[:, None]
        inside = (columns < classes)[None, :]
        count += 1.0
        away = tl.where(inside, y - mean, 0.0)
        mean += away * (1.0 / count)
        squares += away * tl.where(inside, y - mean, 0.0)
    counts = ((classes + BLOCK - 1 - tl.arange(0, BLOCK)) // BLOCK).to(tl.float32)[None, :]
    middle = tl.sum(mean * counts, 1) / classes
    apart = mean - middle[:, None]
    return middle, tl.sum(squares + apart * apart * counts, 1) / classes


@triton.jit
def standard_rows(x_ptr, offsets, stride, keep, own, classes, alpha, b, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Loss, factor, at target, pivot, unit, constant. Rows are measured from the target, whose distance is then 0."""
    unit = tl.full([ROWS], 1.0, tl.float32)
    mean, variance = moments(x_ptr, offsets, stride, keep, own, unit, classes, ROWS, BLOCK)
    fine = (variance > 1e-30) & (variance < 1e30)
    flat = keep == 0
    if tl.min((fine | flat).to(tl.int32)) == 0:
        size = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, classes, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            y = tl.abs(tile(x_ptr, offsets, columns, stride, keep, classes) - own[:, None])
            size = tl.where((columns < classes)[None, :] & (y > size), y, size)
        largest = tl.max(size, 1)
        flat = largest == 0.0
        unit = tl.where(fine | flat, 1.0, 1.0 / largest)
        mean, variance = moments(x_ptr, offsets, stride, keep, own, unit, classes, ROWS, BLOCK)
        flat = flat & (variance == variance)
    sigma = tl.sqrt(tl.where(flat, 1.0, variance))
    inverse = 1.0 / (sigma + eps * unit)
    z = -mean * inverse
    t = alpha * (b - z)
    e = tl.exp(-tl.abs(t))
    loss = (tl.where(t > 0.0, t, 0.0) + log1p_of(e)) / alpha + (t - t)
    steepness = -tl.where(t > 0.0, 1.0, e) / (1.0 + e)
    at_target = steepness * inverse * unit
    share = at_target / classes
    factor = -share * z / sigma
    constant = -share - factor * mean
    return loss, factor, at_target + constant, own, unit, constant


@triton.jit
def hinge_rows(
    x_ptr, offsets, stride, keep, target, own, classes, margin, scale,
    MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and factor."""
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        h = margin + tile(x_ptr, offsets, columns, stride, keep, classes)
        h = tl.where(h < 0.0, 0.0, h)
        total += tl.where(rival(columns, classes, target), h * h if MODE == 1 else h, 0.0)
    h = margin - own
    h = tl.where(h < 0.0, 0.0, h)
    return scale * (tl.sum(total, 1) + (h * h if MODE == 1 else h)), tl.zeros_like(own) + (
        2.0 * scale if MODE == 1 else scale
    )


@triton.jit
def rows_kernel(
    x_ptr, target_ptr, weight_ptr, kept_ptr, stride_outer, stride_inner, stride_class, inner, classes, rows,
    ignore, first, second, third,
    KIND: tl.constexpr, MODE: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is kept of a block of rows; loss and weight are 0 where ignored."""
    blocks = (inner + ROWS - 1) // ROWS
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    within = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    index, inside = outer * inner + within, within < inner
    target = tl.load(target_ptr + index, mask=inside, other=0).to(tl.int64)
    keep = inside & (target != ignore)
    valid = (target >= 0) & (target < classes)
    target = tl.where(keep & valid, target, 0)
    offsets = outer * stride_outer + within.to(tl.int64) * stride_inner
    own = tl.load(x_ptr + offsets + target * stride_class, mask=keep, other=0.0).to(tl.float32)
    target = target.to(tl.int32)  # compared with every column
    if KIND == 0:
        loss, factor, at_target, pivot = softmax_rows(
            x_ptr, offsets, stride_class, keep, target, own, classes, first, second, third, MODE, ROWS, BLOCK
        )
    elif KIND == 1:
        loss, factor, at_target = stablemax_rows(
            x_ptr, offsets, stride_class, keep, target, own, classes, ROWS, BLOCK
        )  # fmt: skip
    elif KIND == 2:
        loss, factor, at_target, unit = quadratic_rows(
            x_ptr, offsets, stride_class, keep, target, own, classes, first, second, ROWS, BLOCK
        )
    elif KIND == 3:
        loss, factor, at_target, pivot, unit, constant = standard_rows(
            x_ptr, offsets, stride_class, keep, own, classes, first, second, third, ROWS, BLOCK
        )
    else:
        loss, factor = hinge_rows(
            x_ptr, offsets, stride_class, keep, target, own, classes, first, second, MODE, ROWS, BLOCK
        )
    weight = tl.where(keep, 1.0, 0.0)
    if WEIGHTED:
        weight = tl.load(weight_ptr + target, mask=keep, other=0.0).to(tl.float32)
    weight = tl.where(valid | (keep == 0), weight, float("nan"))  # no such class
    tl.store(kept_ptr + index, tl.where(keep, loss * weight, 0.0), mask=inside)
    tl.store(kept_ptr + rows + index, weight, mask=inside)
    tl.store(kept_ptr + 2 * rows + index, factor * weight, mask=inside)
    if KIND != 4:
        tl.store(kept_ptr + 3 * rows + index, at_target * weight, mask=inside)
    if KIND == 0 or KIND == 3:
        tl.store(kept_ptr + 4 * rows + index, pivot, mask=inside)
    if KIND == 2 or KIND == 3:
        tl.store(kept_ptr + 5 * rows + index, unit, mask=inside)
    if KIND == 3:
        tl.store(kept_ptr + 6 * rows + index, constant * weight, mask=inside)
