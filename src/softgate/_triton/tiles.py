"""What all attention kernels share: loading tiles, the mask of a tile, block sizes.

A program works on one batch entry and head. Rows are queries, columns keys; the last query stands at the last key.
Offsets are 64-bit: a batch of long sequences passes 2^31 elements.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from softgate._triton import interpreting
from softgate._triton.maps import CLIPPED, LSSA, LSSAR

#: Farther than any key: a window without a limit.
UNLIMITED = 1 << 30
#: Features of 16 bits are padded to a multiple of this: 32 bytes.
ALIGNED = 16
#: What the argument ``PRODUCT`` of the kernels means: operands as they are, of 16 bits; float32 with exact products;
#: float32 in three products of tf32, whose sums lose a few bits; 16 bits as tf32, which holds float16 exactly.
NARROW, EXACT, SPLIT, TF32 = 0, 1, 2, 3
#: What the argument ``MASK`` of the kernels means.
NO_MASK, BOOL_MASK, FLOAT_MASK = 0, 1, 2

_OPTIONS = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages", "maxnreg")
# Plain tables instead of an autotuner: (largest head size, 16-bit) -> rows, columns, warps, stages and, where fewer
# registers for a thread let more programs run at once, how many. By kernel, or by kernel and map where a map differs.
_SOFTPLUS_FORWARD = (
    (128, True, (128, 64, 8, 3)),
    (256, True, (64, 32, 8, 2)),
    (64, False, (64, 32, 4, 2)),
    (128, False, (32, 32, 4, 2)),
    (256, False, (16, 16, 4, 1)),
)
# Of the keys half as many queries at a time: more would not fit into registers.
_FEW_QUERIES = (
    (128, True, (32, 128, 8, 2)),
    (256, True, (32, 64, 8, 2)),
    (64, False, (32, 64, 4, 2)),
    (128, False, (32, 32, 4, 2)),
    (256, False, (16, 16, 4, 1)),
)
_BLOCKS: dict[Any, tuple[tuple[int, bool, tuple[int, ...]], ...]] = {
    ("forward", LSSA): _SOFTPLUS_FORWARD,
    ("forward", LSSAR): _SOFTPLUS_FORWARD,
    ("keys", CLIPPED): _FEW_QUERIES,
    ("keys", LSSA): _FEW_QUERIES,
    ("keys", LSSAR): _FEW_QUERIES,
    "forward": (
        (64, True, (128, 64, 4, 3)),
        (128, True, (128, 64, 8, 3)),
        (256, True, (64, 32, 8, 2)),
        (64, False, (64, 32, 4, 2)),
        (128, False, (32, 32, 4, 2)),
        (256, False, (16, 16, 4, 1)),
    ),
    "queries": (
        (64, True, (128, 64, 8, 3)),
        (128, True, (128, 64, 8, 2)),
        (256, True, (64, 32, 8, 2)),
        (64, False, (64, 32, 4, 2)),
        (128, False, (32, 32, 4, 2)),
        (256, False, (16, 16, 4, 1)),
    ),
    "keys": (
        (64, True, (64, 128, 8, 2)),
        (128, True, (64, 128, 8, 2)),
        (256, True, (32, 64, 8, 2)),
        (64, False, (32, 64, 4, 2)),
        (128, False, (32, 32, 4, 2)),
        (256, False, (16, 16, 4, 1)),
    ),
}
_INTERPRETER_BLOCKS = (32, 16, 4, 1)


def blocks(kernel: str, kind: int, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Launch options of a kernel, one of "forward", "queries" and "keys", for a map and heads of so many features."""
    half = dtype.itemsize == 2
    table = _BLOCKS.get((kernel, kind)) or _BLOCKS[kernel]
    chosen = next(b for size, is_half, b in table if head_dim <= size and is_half == half)
    return dict(zip(_OPTIONS, _INTERPRETER_BLOCKS if interpreting() else chosen, strict=False))


def product_kind(dtype: torch.dtype) -> int:
    """How the kernels multiply matrices of ``dtype``; the interpreter cannot multiply bfloat16 and widens it first."""
    return EXACT if dtype is torch.float32 or (interpreting() and dtype is torch.bfloat16) else NARROW


def width(features: int) -> int:
    """Features padded to what a matrix product needs: a power of two from 16 on."""
    return max(16, triton.next_power_of_2(features))


def mask_arguments(mask: Tensor | None, shape: tuple[int, int, int, int], like: Tensor) -> tuple[Any, ...]:
    """Pointer, four strides and kind of ``mask`` seen as (B, H, T, S)."""
    if mask is None:
        return (like, 0, 0, 0, 0, NO_MASK)
    full = mask.expand(shape)
    if mask.dtype is torch.bool:
        return (full.view(torch.uint8), *full.stride(), BOOL_MASK)
    return (full, *full.stride(), FLOAT_MASK)


@triton.jit
def load(base, rows, stride_row, cols, stride_col, ROWS, COLS):
    """Tile of a matrix (ROWS, COLS), zeros outside."""
    inside = (rows[:, None] < ROWS) & (cols[None, :] < COLS)
    offset = rows[:, None].to(tl.int64) * stride_row + cols[None, :].to(tl.int64) * stride_col
    return tl.load(base + offset, mask=inside, other=0.0)


@triton.jit
def store(base, rows, stride_row, cols, stride_col, ROWS, COLS, value):
    """Write a tile of a matrix (ROWS, COLS), rounded to its dtype."""
    inside = (rows[:, None] < ROWS) & (cols[None, :] < COLS)
    offset = rows[:, None].to(tl.int64) * stride_row + cols[None, :].to(tl.int64) * stride_col
    tl.store(base + offset, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b, PRODUCT: tl.constexpr):
    """Matrix product with float32 sums, computed as :func:`product_kind` says."""
    if PRODUCT == 0:
        return tl.dot(a, b)
    elif PRODUCT == 1:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    elif PRODUCT == 2:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32")


@triton.jit
def rounded_product(a, b, TWICE: tl.constexpr, PRODUCT: tl.constexpr):
    """Product of float32 ``a`` rounded to what ``b`` is; with TWICE also of what that rounding left."""
    high = a.to(b.dtype)
    result = product(high, b, PRODUCT)
    if TWICE:
        result += product((a - high.to(tl.float32)).to(b.dtype), b, PRODUCT)
    return result


@triton.jit
def pair_scores(
    products, rows, cols, factor, line, sizes,
    EDGE: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, ``factor products + shift - slope |distance| + mask``, and which of its pairs exist.

    ``rows`` and ``cols`` have two dimensions, so that a tile may stand either way; ``line`` is shift, slope, the
    mask's pointer and strides; ``sizes`` is T, S, D, Dv and the window. Without EDGE all pairs are inside the matrix
    and the window, and single pairs need not be looked at.
    """
    shift, slope, mask_base, stride_mt, stride_ms = line
    T, S, _, _, LEFT, RIGHT = sizes
    scores = products * factor
    if BIAS:
        scores = scores + shift
    distance = rows + (S - T) - cols
    if EDGE:
        allowed = (rows < T) & (cols < S) & (distance <= LEFT) & (-distance <= RIGHT)
    else:
        allowed = tl.full(scores.shape, 1, tl.int1)
    if ALIBI:
        scores = scores - slope * tl.abs(distance).to(tl.float32)
    if MASK != 0:
        offset = rows.to(tl.int64) * stride_mt + cols.to(tl.int64) * stride_ms
        if MASK == 1:
            allowed = allowed & (tl.load(mask_base + offset, mask=allowed, other=0) != 0)
        else:
            bias = tl.load(mask_base + offset, mask=allowed, other=float("-inf")).to(tl.float32)
            allowed = allowed & (bias != float("-inf"))
            scores = scores + tl.where(allowed, bias, 0.0)
    return scores, allowed


@triton.jit
def line_of(bias_ptr, slope_ptr, mask_ptr, strides, b, h, BIAS: tl.constexpr, ALIBI: tl.constexpr):
    """What :func:`pair_scores` needs to know of a head; ``strides`` are the mask's."""
    shift = tl.load(bias_ptr + h) if BIAS else 0.0
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    return shift, slope, mask_ptr + b * strides[0] + h * strides[1], strides[2], strides[3]


@triton.jit
def key_tile(
    q, keys, rows, first_col, factor, line, sizes, EDGE: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, FACTORS: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Keys from ``first_col`` on, their numbers and factors, and what :func:`pair_scores` says of them and ``rows``.

    ``keys`` are their pointer, two strides, and the pointer to the factors of single keys. ``factor`` is what the
    scores of a row are multiplied by; with FACTORS one for each row, to be multiplied by that of the key.
    """
    cols, features = first_col + tl.arange(0, BLOCK_N), tl.arange(0, WIDTH_D)
    k = load(keys[0], cols, keys[1], features, keys[2], sizes[1], sizes[2])
    by_col = 1.0
    products = product(q, tl.trans(k), PRODUCT)
    if FACTORS:
        by_col = tl.load(keys[3] + cols, mask=cols < sizes[1], other=0.0)
        products = products * by_col[None, :]
        factor = factor[:, None]
    s, allowed = pair_scores(products, rows[:, None], cols[None, :], factor, line, sizes, EDGE, MASK, BIAS, ALIBI)
    return k, cols, by_col, s, allowed


@triton.jit
def key_range(first_row, sizes, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bounds of three loops over the keys that the rows from ``first_row`` on may see, as :func:`bounds` has them."""
    T, S, _, _, LEFT, RIGHT = sizes
    at = first_row + (S - T)
    end = tl.minimum(at + BLOCK_M + RIGHT, S)
    last = tl.minimum(at + RIGHT + 1, S)
    return bounds(at - LEFT, end, at + BLOCK_M - 1 - LEFT, last, first_row + BLOCK_M <= T, BLOCK_N)


@triton.jit
def query_range(first_col, sizes, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bounds of three loops over the queries that may see the keys from ``first_col`` on."""
    T, S, _, _, LEFT, RIGHT = sizes
    at = first_col - (S - T)
    end = tl.minimum(at + BLOCK_N + LEFT, T)
    last = tl.minimum(at + LEFT + 1, T)
    return bounds(at - RIGHT, end, at + BLOCK_N - 1 - RIGHT, last, first_col + BLOCK_N <= S, BLOCK_M)


@triton.jit
def bounds(start, end, first, last, inside, BLOCK: tl.constexpr):
    """Bounds of three loops over blocks that visit ``start`` to ``end`` once, the second one whole blocks only.

    A block is whole if it lies between ``first`` and ``last``; none is if not ``inside``. All bounds but the last are
    multiples of BLOCK.
    """
    start = tl.maximum(start, 0) // BLOCK * BLOCK
    whole = tl.maximum(start, (tl.maximum(first, 0) + BLOCK - 1) // BLOCK * BLOCK)
    stop = tl.where(inside, tl.maximum(whole, tl.maximum(last, 0) // BLOCK * BLOCK), whole)
    return start, tl.minimum(whole, end), whole, stop, stop, end
