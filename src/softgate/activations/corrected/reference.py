"""The formula of CRReLU and its derivatives in plain torch operations."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate._math import masks
from softgate.activations._closed_form import Pair
from softgate.activations._rational_parts import compute_dtype

__all__: list[str] = []

#: From here on exp(-x²/2) is 0 even in float64; inside it nothing overflows, and no infinity meets a 0.
BOUND = 40.0


def _bounded(x: Tensor) -> Tensor:
    """``x``, or BOUND where it is farther out, at which x exp(-x²/2) is 0 as well. NaN stays, with its gradient."""
    return torch.where(x.abs() > BOUND, BOUND, x)


def crrelu_reference(x: Tensor, eps: Tensor) -> Tensor:
    """``max(0, x) + eps x exp(-x²/2)``, in float32 at least."""
    with masks.without_autocast(x):
        dtype = compute_dtype(x, eps)
        wide = x.to(dtype)
        inner = _bounded(wide)
        return (torch.relu(wide) + eps.to(dtype) * (inner * torch.exp(-0.5 * inner.square()))).to(x.dtype)


def _gradients(x: Tensor, eps: Tensor, grad: Tensor, need_x: bool, need_eps: bool) -> Pair:
    """Gradients of ``x`` and ``eps`` from that of the result, by operations that can be differentiated again."""
    grad_x = grad_eps = None
    with masks.without_autocast(x):
        dtype = compute_dtype(x, eps)
        wide, upstream = x.to(dtype), grad.to(dtype)
        inner = _bounded(wide)
        bell = torch.exp(-0.5 * inner.square())
        if need_x:
            slope = (wide > 0).to(dtype) + eps.to(dtype) * ((1.0 - inner.square()) * bell)
            grad_x = (upstream * slope).to(x.dtype)
        if need_eps:
            grad_eps = (upstream * (inner * bell)).sum_to_size(eps.shape).to(eps.dtype)
    return grad_x, grad_eps


class TorchPasses:
    """See :class:`softgate.activations._closed_form.Passes`."""

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """The reference."""
        return crrelu_reference(x, eps)

    def backward(self, x: Tensor, eps: Tensor, grad: Tensor, need_x: bool, need_eps: bool) -> Pair:
        """Gradients from ``x`` alone."""
        return _gradients(x, eps, grad, need_x, need_eps)

    def gradients(self, x: Tensor, eps: Tensor, grad: Tensor, need_x: bool, need_eps: bool) -> Pair:
        """Gradients that can be differentiated again."""
        return _gradients(x, eps, grad, need_x, need_eps)
