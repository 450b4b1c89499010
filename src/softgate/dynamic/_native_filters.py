"""The C++ kernel that computes single filters on the weights as they lie, gathering nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softgate import native
from softgate.dispatch import mode
from softgate.dynamic._gathered import Compact, Folded


def refuses(conv: nn.Conv2d, state: Tensor | Compact) -> str | None:
    """Why the kernel cannot run this layer on this state; None if it runs."""
    x = state.x if isinstance(state, Compact) else state
    if mode() == "reference":
        return "SOFTGATE_KERNELS=reference"
    if not native.available():
        return native.unavailable_reason()
    if conv.groups > 1:
        return "a depthwise convolution has nothing to gather"
    if x.dtype is not torch.float32 or not x.is_cpu:
        return f"it computes float32 on the CPU, not {x.dtype} on {x.device.type}"
    return None


def _pads(conv: nn.Conv2d) -> tuple[list[int], list[int]]:
    """Zeros before and on both sides, per axis."""
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        return [span // 2 for span in spans], spans
    each: Any = (0, 0) if isinstance(conv.padding, str) else conv.padding
    return list(each), [2 * pad for pad in each]


def run(conv: nn.Conv2d, folded: Folded, state: Tensor | Compact, index: Tensor) -> Compact:
    """Filters ``index``, at least one, of ``conv`` on one sample."""
    if isinstance(state, Compact):
        # what only fills up is zero: any channel's weights do for it
        x, which = state.x.contiguous(), state.which.clamp_max(conv.in_channels - 1)
    else:
        x, which = state.contiguous(), torch.arange(conv.in_channels)
    before, both = _pads(conv)
    size = list(x.shape[2:])
    spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    found = [
        (n + pad - span - 1) // step + 1 for n, pad, span, step in zip(size, both, spans, conv.stride, strict=True)
    ]
    out = x.new_empty(1, len(index), *found)
    native.kernels().some_filters(
        x=x.data_ptr(), which=which.data_ptr(), channels=x.shape[1], size=tuple(size), weight=folded.weight.data_ptr(),
        bias=folded.bias.data_ptr(), row=folded.weight[0].numel(), filters=index.data_ptr(), count=len(index),
        kernel=tuple(conv.kernel_size), stride=tuple(conv.stride), padding=tuple(before),
        dilation=tuple(conv.dilation), out=out.data_ptr(), out_size=tuple(found), threads=torch.get_num_threads(),
    )  # fmt: skip
    return Compact(out, index, conv.out_channels)
