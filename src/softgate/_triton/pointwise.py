"""Activations in one pass over the data: each program takes one block of entries.

What is summed over all entries is summed per program first, so that results are deterministic.
"""

# mypy: disable-error-code="no-untyped-def"
# Functions that Triton compiles take no annotations but tl.constexpr.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from softgate._triton import interpreting

__all__: list[str] = []


@triton.jit
def bump_of(x):
    """Bounds x, so that no infinity meets a 0, and gives exp(-x²/2); NaN stays NaN."""
    inner = tl.where(x < -40.0, -40.0, tl.where(x > 40.0, 40.0, x))
    return inner, tl.exp(-0.5 * inner * inner)


@triton.jit
def crrelu_kernel(x_ptr, y_ptr, eps_ptr, entries, BLOCK: tl.constexpr):
    """max(0, x) + eps x exp(-x²/2) of one block."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < entries
    x = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32)
    eps = tl.load(eps_ptr).to(tl.float32)
    inner, bell = bump_of(x)
    y = tl.where(x < 0.0, 0.0, x) + eps * (inner * bell)
    tl.store(y_ptr + index, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def crrelu_backward_kernel(
    x_ptr, grad_ptr, dx_ptr, sums_ptr, eps_ptr, entries, X: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of one block of x, and the block's share of the gradient of eps."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < entries
    x = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + index, mask=inside, other=0.0).to(tl.float32)
    inner, bell = bump_of(x)
    if X:
        eps = tl.load(eps_ptr).to(tl.float32)
        slope = tl.where(x > 0.0, 1.0, 0.0) + eps * ((1.0 - inner * inner) * bell)
        tl.store(dx_ptr + index, (grad * slope).to(dx_ptr.dtype.element_ty), mask=inside)
    if EPS:
        tl.store(sums_ptr + tl.program_id(0), tl.sum(grad * (inner * bell)))


def _block() -> int:
    return 64 if interpreting() else 2048


def crrelu(x: Tensor, eps: Tensor) -> Tensor:
    """CRReLU of ``x``, which has no gaps; ``eps`` has one entry."""
    y = torch.empty_like(x)
    crrelu_kernel[(triton.cdiv(x.numel(), _block()),)](x, y, eps.contiguous(), x.numel(), BLOCK=_block())
    return y


def crrelu_backward(
    x: Tensor, eps: Tensor, grad: Tensor, need_x: bool, need_eps: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradient of ``x``, and what to sum for that of ``eps`` (float32); ``grad`` has the strides of ``x``."""
    programs = triton.cdiv(x.numel(), _block())
    grad_x = torch.empty_like(x) if need_x else None
    sums = torch.empty(programs, dtype=torch.float32, device=x.device) if need_eps else None
    crrelu_backward_kernel[(programs,)](
        x, grad, x if grad_x is None else grad_x, x if sums is None else sums, eps.contiguous(), x.numel(),
        X=need_x, EPS=need_eps, BLOCK=_block(),
    )  # fmt: skip
    return grad_x, sums
