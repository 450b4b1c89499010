"""The pieces of a rational function: polynomials, the published denominators, and derivatives in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._math import masks

#: The published denominators; see :func:`softgate.activations.rational`.
VERSIONS = ("A", "B", "C", "N")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype among ``tensors``, float32 at least."""
    dtype = masks.accumulation_dtype(tensors[0].dtype)
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, masks.accumulation_dtype(tensor.dtype))
    return dtype


def broadcasts(leading: torch.Size, shape: torch.Size) -> bool:
    """Whether ``leading`` broadcasts to ``shape`` without enlarging it."""
    pairs = zip(reversed(leading), reversed(shape), strict=False)
    return len(leading) <= len(shape) and all(size in (1, other) for size, other in pairs)


def polynomial(x: Tensor, coefficients: Tensor) -> Tensor:
    """``c_0 + c_1 x + c_2 x² + …``, by Horner's rule; 0 without coefficients."""
    if coefficients.shape[-1] == 0:
        return torch.zeros_like(x)
    *rest, last = coefficients.unbind(-1)
    value = last.expand(x.shape)
    for c in reversed(rest):
        value = value * x + c
    return value


def slope(x: Tensor, coefficients: Tensor) -> Tensor:
    """Derivative by ``x`` of :func:`polynomial`."""
    degrees = torch.arange(1, coefficients.shape[-1], dtype=coefficients.dtype, device=coefficients.device)
    return polynomial(x, coefficients[..., 1:] * degrees)


def evaluate(x: Tensor, numerator: Tensor, denominator: Tensor, version: str) -> Tensor:
    """``P(x) / Q(x)``, everything in one dtype."""
    return polynomial(x, numerator) / _denominator(x, denominator, version).value


class _Denominator(NamedTuple):
    """Q, and what its derivatives are made of: ``dQ/dx = sign · slope``, ``dQ/db_i = sign · base^i · inner_i``.

    Attributes:
        value: Q(x).
        coefficients: of the inner polynomial, from degree 0 on.
        base: what the inner polynomial is a polynomial of, x or |x|.
        inside: the inner polynomial.
    """

    value: Tensor
    coefficients: Tensor
    base: Tensor
    inside: Tensor


def _denominator(x: Tensor, b: Tensor, version: str) -> _Denominator:
    offset = 0.1 if version == "C" else 1.0
    if version != "C":  # the others begin at degree 1
        b = torch.cat((torch.zeros_like(b[..., :1]) if b.shape[-1] else b.new_zeros((*b.shape[:-1], 1)), b), -1)
    # |b_i x^i| term by term is a polynomial in |x|
    coefficients, base = (b.abs(), x.abs()) if version == "A" else (b, x)
    inside = polynomial(base, coefficients)
    return _Denominator(offset + (inside if version in "AN" else inside.abs()), coefficients, base, inside)


class Recomputed(torch.autograd.Function):
    """:func:`evaluate` that keeps its inputs only and has its derivatives in closed form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numerator: Tensor, denominator: Tensor, version: str) -> Tensor:
        """Value in the dtype of ``x``."""
        ctx.save_for_backward(x, numerator, denominator)
        ctx.version = version
        with masks.without_autocast(x):
            dtype = compute_dtype(x, numerator, denominator)
            return evaluate(x.to(dtype), numerator.to(dtype), denominator.to(dtype), version).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the three tensors, made of differentiable operations."""
        saved, version = ctx.saved_tensors, ctx.version
        dtype = compute_dtype(*saved)
        with masks.without_autocast(saved[0]):
            x, a, b = (tensor.to(dtype) for tensor in saved)
            q = _denominator(x, b, version)
            y = polynomial(x, a) / q.value
            share = grads[0].to(dtype) / q.value
            sign = torch.ones_like(x) if version in "AN" else q.inside.sgn()
            grad_x = grad_a = grad_b = None
            if ctx.needs_input_grad[0]:
                bend = sign * slope(q.base, q.coefficients) * (x.sgn() if version == "A" else 1.0)
                grad_x = (share * (slope(x, a) - y * bend)).to(saved[0].dtype)
            if ctx.needs_input_grad[1]:
                grad_a = _moments(share, x, a, first=0).to(saved[1].dtype)
            if ctx.needs_input_grad[2]:
                moments = _moments(-share * y * sign, q.base, b, first=0 if version == "C" else 1)
                grad_b = (moments * b.sgn() if version == "A" else moments).to(saved[2].dtype)
        return grad_x, grad_a, grad_b, None


def _moments(weight: Tensor, base: Tensor, like: Tensor, *, first: int) -> Tensor:
    """Sums of ``weight · base^k`` for k = first, first + 1, …, in the shape of the coefficients ``like``."""
    sums = []
    term = weight * base if first else weight
    for _ in range(like.shape[-1]):
        sums.append(term.sum_to_size(like.shape[:-1]))
        term = term * base
    return torch.stack(sums, -1) if sums else torch.zeros_like(like)
