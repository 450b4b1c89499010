"""Spiking neurons by the compiled kernels: one pass over all steps forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate import native
from softgate.activations.spiking.passes import Pair
from softgate.activations.spiking.reference import Neuron

__all__: list[str] = []

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def refuses(x: Tensor, *_: Any, surrogate: str = "sigmoid", **options: Any) -> str | None:
    """Why the compiled kernels cannot run this call, None if they can."""
    if not native.available():
        return native.unavailable_reason()
    if not x.is_cpu:
        return f"x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"{x.dtype} has no kernel; there are float32, bfloat16 and float16"
    if surrogate != "sigmoid":
        return f"the surrogate {surrogate!r} has no kernel"
    most = native.kernels().lif_most_steps
    return f"it holds {most} steps, not {len(x)}" if len(x) > most else None


class NativePasses:
    """See :class:`softgate.activations.spiking.passes.Passes`."""

    def forward(self, x_TN: Tensor, state: Tensor | None, neuron: Neuron) -> Pair:
        """One read and one write per entry."""
        x_TN = _in_order(x_TN)
        first = None if state is None else _like(state, x_TN[0], torch.float32)
        s_TN, last = torch.empty_like(x_TN), torch.empty_like(x_TN[0], dtype=torch.float32)
        native.kernels().lif(
            DTYPES[x_TN.dtype], x_TN.data_ptr(), s_TN.data_ptr(), _address(first), last.data_ptr(), neuron.decay,
            neuron.gain, neuron.v_threshold, neuron.reset == "soft", len(x_TN), last.numel(), torch.get_num_threads(),
        )  # fmt: skip
        return s_TN, last

    def backward(
        self, x_TN: Tensor, state: Tensor | None, neuron: Neuron, grad_TN: Tensor, grad_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Two reads and one write per entry."""
        x_TN = _in_order(x_TN)
        first = None if state is None else _like(state, x_TN[0], torch.float32)
        grad_TN, grad_last = _like(grad_TN, x_TN, x_TN.dtype), _like(grad_state, x_TN[0], torch.float32)
        grad_x_TN, grad_first = torch.empty_like(x_TN), torch.empty_like(grad_last)
        native.kernels().lif_backward(
            DTYPES[x_TN.dtype], x_TN.data_ptr(), grad_TN.data_ptr(), grad_x_TN.data_ptr(), _address(first),
            grad_last.data_ptr(), grad_first.data_ptr(), neuron.decay, neuron.gain, neuron.v_threshold, neuron.alpha,
            neuron.reset == "soft", neuron.detach_reset, len(x_TN), grad_last.numel(), torch.get_num_threads(),
        )  # fmt: skip
        return grad_x_TN, grad_first


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _in_order(x_TN: Tensor) -> Tensor:
    """``x_TN`` with one step after the other, the entries of a step without gaps but in any order."""
    x_TN = x_TN.detach().resolve_neg()
    dense = torch.empty_like(x_TN, device="meta").stride() == x_TN.stride()
    outermost = len(x_TN) == 1 or x_TN.stride(0) == x_TN[0].numel()
    return x_TN if dense and outermost else x_TN.contiguous()


def _like(tensor: Tensor, template: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``, its entries in the order of those of ``template``."""
    tensor = tensor.detach().resolve_neg()
    if tensor.stride() == template.stride() and tensor.dtype is dtype:
        return tensor
    return torch.empty_like(template, dtype=dtype).copy_(tensor)
