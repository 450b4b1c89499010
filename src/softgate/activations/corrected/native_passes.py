"""CRReLU by the compiled kernels: one pass over the data forward, one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from softgate import native
from softgate.activations._closed_form import Pair
from softgate.activations.corrected.reference import TorchPasses

__all__: list[str] = []

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Entries whose share of the gradient of eps is summed before the others': the result does not depend on the threads.
BLOCK = 4096


def refuses(x: Tensor, eps: Tensor) -> str | None:
    """Why the compiled kernels cannot run this call, None if they can."""
    if not native.available():
        return native.unavailable_reason()
    if not (x.is_cpu and eps.is_cpu):
        return f"x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"{x.dtype} has no kernel; there are float32, bfloat16 and float16"
    return one_narrow_eps(eps)


def one_narrow_eps(eps: Tensor) -> str | None:
    """Why a kernel with one float32 eps cannot run, None if it can."""
    if eps.numel() != 1:
        return f"it knows one eps, not {eps.numel()}"
    return "eps is float64" if eps.dtype is torch.float64 else None


class NativePasses(TorchPasses):
    """See :class:`softgate.activations._closed_form.Passes`."""

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """One read and one write per entry."""
        x = in_order(x)
        y = torch.empty_like(x)
        native.kernels().crrelu(
            DTYPES[x.dtype], x.data_ptr(), y.data_ptr(), float(eps.detach()), x.numel(), torch.get_num_threads()
        )
        return y

    def backward(self, x: Tensor, eps: Tensor, grad: Tensor, need_x: bool, need_eps: bool) -> Pair:
        """Two reads and one write per entry."""
        x = in_order(x)
        grad = like(grad, x)
        grad_x = torch.empty_like(x) if need_x else None
        blocks = -(-x.numel() // BLOCK)
        sums = torch.empty(blocks, dtype=torch.float64) if need_eps else None
        native.kernels().crrelu_backward(
            DTYPES[x.dtype],
            x.data_ptr(),
            grad.data_ptr(),
            0 if grad_x is None else grad_x.data_ptr(),
            0 if sums is None else sums.data_ptr(),
            float(eps.detach()),
            x.numel(),
            BLOCK,
            torch.get_num_threads(),
        )
        return grad_x, None if sums is None else sums.sum().to(eps.dtype).reshape(eps.shape)


def in_order(x: Tensor) -> Tensor:
    """``x`` without gaps, its entries in any order that channels may have, for passes that look at one at a time."""
    x = x.detach().resolve_neg()
    dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x if dense else x.contiguous()


def like(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` with its entries in the order of those of ``x``."""
    grad = grad.detach().resolve_neg()
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)
