"""``fourier_log_pmf`` on the CPU: symmetric bins need half the products, and everything else happens in place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softgate._math.compress import compute_dtype
from softgate._math.double_backward import differentiable_gradients
from softgate.dispatch import is_batched_gradient, transform_reason
from softgate.losses.fourier.series import normalize, power, unit_scale

__all__: list[str] = []

#: Below so many probabilities the calls cost more than the work, and the plain reference has fewer of them.
_LEAST = 2**13
#: Numbers in the largest scratch array of one block of rows: about a megabyte, which stays in the cache.
_BLOCK = 2**18


def refuses(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-5) -> str | None:
    """Why the kernel cannot run this call, None if it can."""
    if not real.is_cpu:
        return f"it is written for the CPU, real is on {real.device}"
    if cos.requires_grad or sin.requires_grad:
        return "it has no gradient for the tables"
    if real.numel() // real.shape[-1] * cos.shape[1] < _LEAST:
        return f"it needs {_LEAST} probabilities to pay off"
    if not (torch.equal(cos, cos.flip(1)) and torch.equal(sin, -sin.flip(1))):
        return "the bins are not symmetric about 0"
    return None


def run(real: Tensor, imag: Tensor, cos: Tensor, sin: Tensor, *, eps: float = 1e-5) -> Tensor:
    """The kernel; all rows at once."""
    shape = real.shape[:-1]
    pair = torch.stack((real.reshape(-1, real.shape[-1]), imag.reshape(-1, real.shape[-1])))
    output = _Mirrored.apply(pair.to(compute_dtype(real.dtype)), cos, sin, eps)
    return output.reshape(*shape, cos.shape[1]).to(real.dtype)


def _plain(pair: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """The same from ordinary operations, for derivatives of the gradient."""
    values = power(*unit_scale(pair[0], pair[1]), cos.to(pair.dtype), sin.to(pair.dtype))
    return (normalize(values) + eps).log()


class _Mirrored(torch.autograd.Function):
    """At b the products give ``C_re - S_im`` and ``S_re + C_im``, at -b ``C_re + S_im`` and ``C_im - S_re``."""

    @staticmethod
    def forward(ctx: Any, pair: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        bins = cos.shape[1]
        table = torch.cat((cos[:, bins // 2 :], sin[:, bins // 2 :]), 1).to(pair.dtype)  # the right half
        scaled = torch.stack(unit_scale(pair[0], pair[1]))
        rows = pair.shape[1]
        parts = pair.new_empty(4, rows, bins - bins // 2)
        y, total = pair.new_empty(rows, bins), pair.new_empty(rows, 1)
        for block in _blocks(rows, bins):
            _probabilities(scaled[:, block], table, parts[:, block], y[block], total[block])
        ctx.save_for_backward(pair, cos, sin, table, parts, y, total)
        ctx.eps = eps
        return (y + eps).log_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        pair, cos, sin, table, parts, y, total = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled() or transform_reason(pair, grad) is not None or is_batched_gradient(grad):
            plain = partial(_plain, eps=ctx.eps)
            return differentiable_gradients(plain, (pair, cos, sin), (True, False, False), grad)[0], None, None, None
        slopes = torch.empty_like(pair)
        for block in _blocks(pair.shape[1], cos.shape[1]):
            _slopes(grad[block], y[block], total[block], parts[:, block], table, ctx.eps, slopes[:, block])
        scale = pair.abs().amax((0, 2)).clamp_min_(torch.finfo(pair.dtype).tiny)
        return slopes.div_(scale.unsqueeze(-1)), None, None, None


def _blocks(rows: int, bins: int) -> Iterator[slice]:
    step = max(1, _BLOCK // bins)
    return (slice(start, start + step) for start in range(0, rows, step))


def _probabilities(scaled: Tensor, table: Tensor, parts: Tensor, y: Tensor, total: Tensor) -> None:
    """Write real and imaginary parts of A right and left of 0, y and Σ|A|² of one block of rows."""
    (_, rows, half), left = parts.shape, y.shape[1] // 2
    products = (scaled.reshape(2 * rows, -1) @ table).view(2, rows, 2 * half)
    (cos_real, cos_imag), (sin_real, sin_imag) = products[..., :half], products[..., half:]
    torch.sub(cos_real, sin_imag, out=parts[0])
    torch.add(sin_real, cos_imag, out=parts[1])
    torch.add(cos_real, sin_imag, out=parts[2])
    torch.sub(cos_imag, sin_real, out=parts[3])
    torch.mul(parts[0], parts[0], out=y[:, left:]).addcmul_(parts[1], parts[1])
    # an odd number of bins has one at 0, which belongs to the right half
    y[:, :left] = parts[2].square().addcmul_(parts[3], parts[3]).flip(1)[:, :left]
    torch.sum(y, 1, keepdim=True, out=total)
    empty = total == 0.0
    if bool(empty.any()):  # uniform; with parts of 0 their gradient is 0
        y.masked_fill_(empty, 1.0 / y.shape[1])
        total.masked_fill_(empty, 1.0)
    y.div_(total)


def _slopes(grad: Tensor, y: Tensor, total: Tensor, parts: Tensor, table: Tensor, eps: float, out: Tensor) -> None:
    """Write the gradient of the scaled coefficients of one block of rows."""
    (_, rows, half), left = parts.shape, y.shape[1] // 2
    slope = grad / (y + eps)
    slope.sub_((slope * y).sum(1, keepdim=True)).mul_(2.0 / total)
    right = slope[:, left:]
    mirrored = slope.new_zeros(rows, half)
    mirrored[:, half - left :] = slope[:, :left].flip(1)
    products = slope.new_empty(2, rows, 2 * half)
    (cos_real, cos_imag), (sin_real, sin_imag) = products[..., :half], products[..., half:]
    first, second = parts[0] * right, parts[2] * mirrored
    torch.add(first, second, out=cos_real)
    torch.sub(second, first, out=sin_imag)
    first, second = torch.mul(parts[1], right, out=first), torch.mul(parts[3], mirrored, out=second)
    torch.add(first, second, out=cos_imag)
    torch.sub(first, second, out=sin_real)
    out.copy_((products.view(2 * rows, 2 * half) @ table.mT).view(2, rows, -1))
