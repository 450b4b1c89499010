"""The formula of HyReLU and its derivatives in plain torch operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softgate._math import masks
from softgate.activations._closed_form import Pair
from softgate.activations._rational_parts import compute_dtype

__all__: list[str] = []


def hyrelu_reference(x: Tensor, bound: Tensor, k: float = 20.0) -> Tensor:
    """``max(0, x sigmoid(k (bound - x)))``, in float32 at least; 0 where ``x`` is not finite."""
    with masks.without_autocast(x):
        dtype = compute_dtype(x, bound)
        wide = x.to(dtype)
        # a fault makes infinities and NaN: for them the product would be NaN, of all values the worst to pass on
        wide = torch.where(wide.isfinite(), wide, 0.0)
        return torch.relu(wide * torch.sigmoid(k * (bound.to(dtype) - wide))).to(x.dtype)


@dataclass(frozen=True)
class Recompute:
    """The formula forward, and its derivatives from ``x`` alone; see :class:`softgate.activations._closed_form.Passes`.

    Attributes:
        k: steepness.
    """

    k: float

    def forward(self, x: Tensor, bound: Tensor) -> Tensor:
        """The reference."""
        return hyrelu_reference(x, bound, self.k)

    def backward(self, x: Tensor, bound: Tensor, grad: Tensor, need_x: bool, need_bound: bool) -> Pair:
        """Gradients of ``x`` and ``bound`` from that of the result."""
        grad_x = grad_bound = None
        with masks.without_autocast(x):
            dtype = compute_dtype(x, bound)
            wide, upstream = x.to(dtype), grad.to(dtype)
            passes = wide.isfinite() & (wide > 0)
            wide = torch.where(passes, wide, 0.0)
            gate = torch.sigmoid(self.k * (bound.to(dtype) - wide))
            slope = self.k * (wide * gate) * (1.0 - gate)  # of the result by the bound; k x alone may overflow
            if need_x:
                grad_x = torch.where(passes, upstream * (gate - slope), 0.0).to(x.dtype)
            if need_bound:
                grad_bound = torch.where(passes, upstream * slope, 0.0).sum_to_size(bound.shape).to(bound.dtype)
        return grad_x, grad_bound

    def gradients(self, x: Tensor, bound: Tensor, grad: Tensor, need_x: bool, need_bound: bool) -> Pair:
        """The same; all of it can be differentiated again."""
        return self.backward(x, bound, grad, need_x, need_bound)
