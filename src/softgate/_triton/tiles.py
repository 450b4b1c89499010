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

#: Farther than any key: a window without a limit.
UNLIMITED = 1 << 30
#: What the argument ``PRODUCT`` of the kernels means: operands as they are, of 16 bits; float32 with exact products;
#: float32 in three products of tf32, whose sums lose a few bits; 16 bits as tf32, which holds float16 exactly.
NARROW, EXACT, SPLIT, TF32 = 0, 1, 2, 3
#: What the argument ``MASK`` of the kernels means.
NO_MASK, BOOL_MASK, FLOAT_MASK = 0, 1, 2

# Plain table instead of an autotuner: (largest head size, 16-bit) -> rows, columns, warps, stages.
_BLOCKS = (
    (64, True, (128, 64, 4, 3)),
    (128, True, (128, 64, 8, 3)),
    (256, True, (64, 32, 8, 2)),
    (64, False, (64, 32, 4, 2)),
    (128, False, (32, 32, 4, 2)),
    (256, False, (16, 16, 4, 1)),
)
_INTERPRETER_BLOCKS = (32, 16, 4, 1)


def blocks(head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Launch options for heads of ``head_dim`` features."""
    if interpreting():
        rows, cols, warps, stages = _INTERPRETER_BLOCKS
    else:
        half = dtype.itemsize == 2
        rows, cols, warps, stages = next(b for size, is_half, b in _BLOCKS if head_dim <= size and is_half == half)
    return {"BLOCK_M": rows, "BLOCK_N": cols, "num_warps": warps, "num_stages": stages}


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
def pair_scores(
    q, k, rows, cols, mask_base, stride_mt, stride_ms, scale, shift, slope, T, S, LEFT, RIGHT,
    MASK: tl.constexpr, ALIBI: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, ``scale q kᵀ + shift - slope |distance| + mask``, and which of its pairs exist."""
    scores = product(q, tl.trans(k), PRODUCT) * scale + shift
    distance = rows[:, None] + (S - T) - cols[None, :]
    allowed = (rows[:, None] < T) & (cols[None, :] < S) & (distance <= LEFT) & (-distance <= RIGHT)
    if ALIBI:
        scores = scores - slope * tl.abs(distance).to(tl.float32)
    if MASK != 0:
        offset = rows[:, None].to(tl.int64) * stride_mt + cols[None, :].to(tl.int64) * stride_ms
        if MASK == 1:
            allowed = allowed & (tl.load(mask_base + offset, mask=allowed, other=0) != 0)
        else:
            bias = tl.load(mask_base + offset, mask=allowed, other=float("-inf")).to(tl.float32)
            allowed = allowed & (bias != float("-inf"))
            scores = scores + tl.where(allowed, bias, 0.0)
    return scores, allowed


@triton.jit
def key_range(first_row, T, S, LEFT, RIGHT, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """First (a multiple of BLOCK_N) and end of the keys that the rows from ``first_row`` on may see."""
    start = tl.maximum(first_row + (S - T) - LEFT, 0) // BLOCK_N * BLOCK_N
    end = tl.minimum(first_row + BLOCK_M + (S - T) + RIGHT, S)
    return start, end


@triton.jit
def query_range(first_col, T, S, LEFT, RIGHT, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """First (a multiple of BLOCK_M) and end of the queries that may see the keys from ``first_col`` on."""
    start = tl.maximum(first_col - (S - T) - RIGHT, 0) // BLOCK_M * BLOCK_M
    end = tl.minimum(first_col + BLOCK_N - (S - T) + LEFT, T)
    return start, end
