"""CRReLU on a GPU: one Triton kernel forward, one backward."""

from __future__ import annotations

from torch import Tensor

from softgate import _triton
from softgate.activations._closed_form import Pair
from softgate.activations.corrected.native_passes import in_order, like, one_narrow_eps
from softgate.activations.corrected.reference import TorchPasses

__all__: list[str] = []


def refuses(x: Tensor, eps: Tensor) -> str | None:
    """Why the Triton kernels cannot run this call, None if they can."""
    return one_narrow_eps(eps) or _triton.refuses(x, "auto") or ("x has no entries" if x.numel() == 0 else None)


class TritonPasses(TorchPasses):
    """See :class:`softgate.activations._closed_form.Passes`."""

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """One read and one write per entry; eps is read on the device."""
        from softgate._triton import pointwise

        return pointwise.crrelu(in_order(x), eps.detach())

    def backward(self, x: Tensor, eps: Tensor, grad: Tensor, need_x: bool, need_eps: bool) -> Pair:
        """Two reads and one write per entry."""
        from softgate._triton import pointwise

        x = in_order(x)
        grad_x, sums = pointwise.crrelu_backward(x, eps.detach(), like(grad, x), need_x, need_eps)
        return grad_x, None if sums is None else sums.sum().to(eps.dtype).reshape(eps.shape)
