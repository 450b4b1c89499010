"""Kernels that go once over the rows of tensors (B, H, T, D): lengths of vectors, sums of products."""

# Functions that Triton compiles take no annotations but tl.constexpr.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from softgate._triton import interpreting, tiles
from softgate._triton.tiles import load, store

#: A vector without an entry above this has no direction: it counts as the zero vector.
SMALLEST = tl.constexpr(1e-12)


@triton.jit
def directions_kernel(
    x_ptr, out_ptr, factor_ptr, size_ptr, sxb, sxh, sxt, sxd, H, T, D, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Vectors times a power of two that brings their largest entry near 1, 1 / their length then, and that power."""
    batch_head = tl.program_id(1).to(tl.int64)
    b, h = batch_head // H, batch_head % H
    rows, features = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    x = load(x_ptr + b * sxb + h * sxh, rows, sxt, features, sxd, T, D).to(tl.float32)
    largest = tl.max(tl.abs(x), 1)
    # Exponents are biased by 127 and stand in front of 23 bits of the fraction: 254 - E is that of the reciprocal.
    exponent = tl.minimum(largest.to(tl.int32, bitcast=True) >> 23, 253)
    size = tl.where(largest > SMALLEST, ((254 - exponent) << 23).to(tl.float32, bitcast=True), 0.0)
    y = (x * size[:, None]).to(out_ptr.dtype.element_ty)
    wide = y.to(tl.float32)
    squares = tl.sum(wide * wide, 1)
    factor = tl.where(squares > 0.0, 1.0 / tl.sqrt(tl.where(squares > 0.0, squares, 1.0)), 0.0)
    store(out_ptr + batch_head * T * D, rows, D, features, 1, T, D, y)
    tl.store(factor_ptr + batch_head * T + rows, factor, mask=rows < T)
    tl.store(size_ptr + batch_head * T + rows, size, mask=rows < T)


@triton.jit
def tangents_kernel(
    grad_ptr, x_ptr, size_ptr, out_ptr, ROWS, D, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Rows of a gradient without their part along those of x, times ``size``; all contiguous."""
    features = tl.arange(0, WIDTH)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gradient = load(grad_ptr, rows, D, features, 1, ROWS, D)
    x = load(x_ptr, rows, D, features, 1, ROWS, D).to(tl.float32)
    squares = tl.sum(x * x, 1)
    along = tl.sum(gradient * x, 1) / tl.where(squares > 0.0, squares, 1.0)
    size = tl.load(size_ptr + rows, mask=rows < ROWS, other=0.0)
    store(out_ptr, rows, D, features, 1, ROWS, D, (gradient - along[:, None] * x) * size[:, None])


@triton.jit
def row_products_kernel(
    a_ptr, b_ptr, sums_ptr, ROWS, D, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Sum of the products of each row's entries; both tensors contiguous."""
    features = tl.arange(0, WIDTH)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = load(a_ptr, rows, D, features, 1, ROWS, D).to(tl.float32)
    b = load(b_ptr, rows, D, features, 1, ROWS, D).to(tl.float32)
    tl.store(sums_ptr + rows, tl.sum(a * b, 1), mask=rows < ROWS)


def directions(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of a size that squares and products can hold, and what makes unit vectors of them.

    Args:
        x: (B, H, T, D).

    Returns:
        (B, H, T, D), each vector of ``x`` times a power of two; (B, H, T), the reciprocals of their lengths, 0 for
        vectors without a direction, which become 0; (B, H, T), the powers of two. The latter two in float32.
    """
    batch, heads, length, features = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    factor, size = (torch.empty(x.shape[:3], dtype=torch.float32, device=x.device) for _ in range(2))
    options = _options(features)
    directions_kernel[(triton.cdiv(length, options["BLOCK"]), batch * heads)](
        x, out, factor, size, *x.stride(), heads, length, features, **options
    )
    return out, factor, size


def tangents(gradient: Tensor, x: Tensor, size: Tensor) -> Tensor:
    """``size`` times what of ``gradient`` (float32) is at right angles to the vectors ``x``, in the dtype of ``x``."""
    out, count = torch.empty_like(x), size.numel()
    options = _options(x.shape[-1])
    tangents_kernel[(triton.cdiv(count, options["BLOCK"]),)](
        gradient, x, size, out, count, x.shape[-1], **options
    )  # fmt: skip
    return out


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """(B, H, T), the sums over the last dimension of ``a * b``, both contiguous, in float32."""
    sums = torch.empty(a.shape[:-1], dtype=torch.float32, device=a.device)
    options = _options(a.shape[-1])
    row_products_kernel[(triton.cdiv(sums.numel(), options["BLOCK"]),)](
        a, b, sums, sums.numel(), a.shape[-1], **options
    )  # fmt: skip
    return sums


def _options(features: int) -> dict[str, Any]:
    width = tiles.width(features)
    return {"WIDTH": width, "BLOCK": 32 if interpreting() else max(4096 // width, 16), "num_warps": 4}
