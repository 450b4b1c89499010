"""The native kernels behind the public functions: when they run, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgate import native

SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = 0, 1, 2
_REGISTER_ROW = 128  # rows up to this length stay in registers, where the kernel wins
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def refuses(
    x: Tensor,
    dim: int = -1,
    *,
    algorithm: str = "auto",
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **_: Any,
) -> str | None:
    """Why the native kernel does not run this call, None if it does."""
    if not native.available():
        return native.unavailable_reason()
    if algorithm == "torch":
        return "algorithm='torch' asks for torch"
    if not x.is_cpu:
        return f"x is on {x.device}"
    if (dtype or x.dtype) not in DTYPES:
        return f"{dtype or x.dtype} has no kernel; there are float32, bfloat16 and float16"
    if algorithm == "auto" and native.kernels().isa() == "scalar":
        return "without AVX2 torch is faster; name an algorithm to run the portable kernel"
    return None


def run_softmax(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    """Softmax by the kernels; the arguments of the public function, checked."""
    return _run(SOFTMAX, x, dim, **options)


def run_log_softmax(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    """Log-softmax by the kernels; the arguments of the public function, checked."""
    return _run(LOG_SOFTMAX, x, dim, **options)


def run_logsumexp(x: Tensor, dim: int = -1, **options: Any) -> Tensor:
    """Log-sum-exp by the kernels; the arguments of the public function, checked."""
    return _run(LOGSUMEXP, x, dim, **options)


def _run(
    op: int,
    x: Tensor,
    dim: int,
    *,
    algorithm: str = "auto",
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    empty: str = "nan",
    num_threads: int | None = None,
) -> Tensor:
    if dtype is not None and dtype != x.dtype:
        x = x.to(dtype)  # differentiable, unlike the kernel
    plan, threads = native.ALGORITHMS[algorithm], num_threads or torch.get_num_threads()
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Kernel.apply(x, op, dim % max(x.ndim, 1), plan, empty == "zero", threads)
        return result
    return launch(op, x, dim, plan, empty == "zero", threads, out)


def split_shape(shape: torch.Size, dim: int) -> tuple[int, int, int]:
    """``(outer, n, inner)`` of a C-ordered array around ``dim``."""
    if not shape:
        return 1, 1, 1
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])


def launch(op: int, x: Tensor, dim: int, plan: int, zero: bool, threads: int, out: Tensor | None = None) -> Tensor:
    """Run one kernel on a copy-free view of ``x`` if it is contiguous, else on a contiguous copy."""
    x = x.detach().resolve_neg().contiguous()
    dim = dim % max(x.ndim, 1)
    shape = x.shape[:dim] + x.shape[dim + 1 :] if op == LOGSUMEXP else x.shape
    direct = out is not None and out.is_contiguous() and not out.is_neg()
    result = out.detach() if direct and out is not None else x.new_empty(shape)
    outer, n, inner = split_shape(x.shape, dim)
    if op == LOGSUMEXP and n == 0:
        result.fill_(-math.inf)
    else:
        code = DTYPES[x.dtype]
        native.kernels().softmax(op, code, x.data_ptr(), result.data_ptr(), outer, n, inner, plan, zero, threads)
    if out is None:
        return result
    return out if direct else out.copy_(result)


class _Kernel(torch.autograd.Function):
    """One op with its gradient; functorch and forward mode never get here (``softgate.dispatch``)."""

    @staticmethod
    def forward(x: Tensor, op: int, dim: int, plan: int, zero: bool, threads: int) -> Tensor:  # type: ignore[override]
        return launch(op, x, dim, plan, zero, threads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # type: ignore[override]
        x, ctx.op, ctx.dim, _, ctx.zero, ctx.threads = inputs
        ctx.save_for_backward(*((x, output) if ctx.op == LOGSUMEXP else (output,)))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        if ctx.op == LOGSUMEXP:
            dx = logsumexp_gradient(saved[0], saved[1], dy, ctx.dim)
        elif torch.is_grad_enabled() or type(dy) is not Tensor:
            dx = composite_gradient(ctx.op, saved[0], dy, ctx.dim)
        else:
            dx = native_gradient(ctx.op, saved[0], dy, ctx.dim, ctx.threads)
        if ctx.op == LOG_SOFTMAX and ctx.zero:  # a row without any weight has no gradient
            dx = dx.masked_fill((saved[0] == -math.inf).all(ctx.dim, keepdim=True), 0.0)
        return dx, None, None, None, None, None


def native_gradient(op: int, y: Tensor, dy: Tensor, dim: int, threads: int, dx: Tensor | None = None) -> Tensor:
    """``y (dy - sum y dy)`` for softmax, ``dy - exp(y) sum dy`` for log-softmax; ``dx`` receives it if given."""
    dy = dy.resolve_neg().contiguous()
    dx = torch.empty_like(y) if dx is None else dx
    if op == SOFTMAX and y.dtype == torch.float32 and dim == y.ndim - 1 and y.shape[dim] > _REGISTER_ROW:
        # Two streams and two multiplications: bound by memory, and there torch's loop is the faster one.
        return torch.ops.aten._softmax_backward_data.out(dy, y, dim, y.dtype, grad_input=dx)
    code, pointers = DTYPES[y.dtype], (y.data_ptr(), dy.data_ptr(), dx.data_ptr())
    native.kernels().gradient(op == LOG_SOFTMAX, code, *pointers, *split_shape(y.shape, dim), threads)
    return dx


def composite_gradient(op: int, y: Tensor, dy: Tensor, dim: int) -> Tensor:
    """The same in torch operations, which can be differentiated again."""
    if op == LOG_SOFTMAX:
        return dy - y.exp() * dy.sum(dim, keepdim=True)
    return y * (dy - (y * dy).sum(dim, keepdim=True))


def logsumexp_gradient(x: Tensor, lse: Tensor, dy: Tensor, dim: int) -> Tensor:
    """``exp(x - lse) dy``, 0 in rows of ``-inf``."""
    if x.ndim:
        lse, dy = lse.unsqueeze(dim), dy.unsqueeze(dim)
    return (x - lse.masked_fill(lse == -math.inf, 0.0)).exp() * dy
