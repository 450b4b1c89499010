"""Greedy suppression of boxes that lowers scores (Soft-NMS): one program per group, its boxes in registers."""

# mypy: disable-error-code="no-untyped-def"
# Functions that Triton compiles take no annotations but tl.constexpr.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__: list[str] = []


@triton.jit
def passing(score, threshold, KEEP_EQUAL: tl.constexpr):
    """Which scores are high enough to stay."""
    if KEEP_EQUAL:
        return score >= threshold
    return score > threshold


@triton.jit
def sides(low_x, low_y, high_x, high_y, offset):
    """Area between corners; 0 where a side is negative."""
    return tl.maximum(high_x - low_x + offset, 0.0) * tl.maximum(high_y - low_y + offset, 0.0)


@triton.jit
def factor_of(o, sigma, limit, DECAY: tl.constexpr, INCLUSIVE: tl.constexpr):
    """What an overlap leaves of a score."""
    if DECAY == 2:
        return tl.exp(tl.div_rn(-(o * o), sigma + tl.zeros_like(o)))
    above = o >= limit if INCLUSIVE else o > limit
    return tl.where(above, 1.0 - o if DECAY == 1 else tl.zeros_like(o), 1.0)


@triton.jit
def soft_nms_kernel(
    boxes_ptr, scores_ptr, order_ptr, offsets_ptr, keep_ptr, final_ptr, picks_ptr,
    size, shared, most, sigma, limit, threshold, offset,
    FLAT: tl.constexpr, DECAY: tl.constexpr, FIRST: tl.constexpr, INCLUSIVE: tl.constexpr, KEEP_EQUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Picks of a group in order, their final scores and number.

    With FLAT the boxes of group g are rows ``order[offsets[g]]`` to ``order[offsets[g + 1] - 1]``; else groups have
    ``size`` boxes each, and ``shared`` groups in sequence the same ones. A box that is gone has score -1. DECAY and
    FIRST are places in :data:`softgate.detection._rules.METHODS` and ``FIRST``.
    """
    group = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    base, count = group * size, size
    rows = places.to(tl.int64)
    scored = base + rows
    if FLAT:
        base = tl.load(offsets_ptr + group)
        count = (tl.load(offsets_ptr + group + 1) - base).to(tl.int32)
        rows = tl.load(order_ptr + base + rows, mask=places < count, other=0)
        scored = rows
    else:
        boxes_ptr += group // shared * size * 4
    inside = places < count
    x1 = tl.load(boxes_ptr + rows * 4, mask=inside, other=0.0)
    y1 = tl.load(boxes_ptr + rows * 4 + 1, mask=inside, other=0.0)
    x2 = tl.load(boxes_ptr + rows * 4 + 2, mask=inside, other=0.0)
    y2 = tl.load(boxes_ptr + rows * 4 + 3, mask=inside, other=0.0)
    score = tl.load(scores_ptr + scored, mask=inside, other=-1.0)
    there = (score >= 0.0) & (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2)
    if FIRST == 0:
        there = there & passing(score, threshold, KEEP_EQUAL)
    score = tl.where(there, score, -1.0)
    area = sides(x1, y1, x2, y2, offset)
    step, best = tl.full([], 0, tl.int64), tl.max(score, 0)
    while (step < most) & (best >= 0.0):
        place = tl.min(tl.where(score == best, places, BLOCK), 0)
        row = place.to(tl.int64)
        if FLAT:
            row = tl.load(order_ptr + base + row)
        tl.store(keep_ptr + base + step, row)
        tl.store(final_ptr + base + step, best)
        px1, py1 = tl.load(boxes_ptr + row * 4), tl.load(boxes_ptr + row * 4 + 1)
        px2, py2 = tl.load(boxes_ptr + row * 4 + 2), tl.load(boxes_ptr + row * 4 + 3)
        common = sides(tl.maximum(x1, px1), tl.maximum(y1, py1), tl.minimum(x2, px2), tl.minimum(y2, py2), offset)
        union = area + sides(px1, py1, px2, py2, offset) - common
        some = union > 0.0
        overlap = tl.where(some, tl.div_rn(common, tl.where(some, union, 1.0)), 0.0)
        factor = factor_of(overlap, sigma, limit, DECAY, INCLUSIVE)
        weaker = tl.where(factor == 0.0, 0.0, score * factor)  # of an infinite score too
        lives = passing(weaker, threshold, KEEP_EQUAL)
        if FIRST == 2:
            lives = lives | (common <= 0.0)
        score = tl.where((score >= 0.0) & (places != place) & lives, weaker, -1.0)
        step, best = step + 1, tl.max(score, 0)
    tl.store(picks_ptr + group, step)


def launch(
    boxes: Tensor,
    scores: Tensor,
    keep: Tensor,
    final: Tensor,
    count: Tensor,
    *,
    largest: int,
    size: int,
    shared: int,
    most: int,
    numbers: tuple[float, float, float, float],
    kind: tuple[int, int, bool, bool],
    order: Tensor | None = None,
    offsets: Tensor | None = None,
) -> None:
    """Fill ``keep``, ``final`` and ``count`` (one entry per group); see :func:`soft_nms_kernel`.

    Args:
        boxes: corners, float32, contiguous.
        scores: float32, contiguous.
        keep: int64.
        final: float32.
        count: int64, one entry per group.
        largest: boxes of the largest group.
        size: boxes of every group, where ``offsets`` is None.
        shared: groups in sequence with the same boxes.
        most: picks of a group.
        numbers: sigma, threshold of overlaps, threshold of scores, offset of widths.
        kind: DECAY, FIRST, INCLUSIVE, KEEP_EQUAL.
        order: rows by group, int64.
        offsets: where each group begins in ``order``, and the end.
    """
    block = max(16, triton.next_power_of_2(largest))
    decay, first, inclusive, keep_equal = kind
    soft_nms_kernel[(len(count),)](
        boxes, scores, boxes if order is None else order, boxes if offsets is None else offsets, keep, final, count,
        size, shared, most, *numbers,
        FLAT=offsets is not None, DECAY=decay, FIRST=first, INCLUSIVE=inclusive, KEEP_EQUAL=keep_equal, BLOCK=block,
        num_warps=min(max(block // 256, 1), 16),
        # a sum of rounded products, as the reference makes it: ties of scores are decided the same way
        enable_fp_fusion=False,
    )  # fmt: skip
