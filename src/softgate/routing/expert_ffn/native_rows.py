"""The compiled kernels for experts, in float32 on the CPU: products of a few rows each, and the gate of SwiGLU."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from softgate import native

#: Up to so many rows of an expert, reading its matrix once is faster than a product of torch.
FEW_ROWS = 8
_FORWARD, _INPUT_GRAD, _WEIGHT_GRAD = range(3)
#: Expert, first row, row after the last.
Segment = tuple[int, int, int]


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: float32 rows without gaps, and vectors to do it with."""
    return (
        native.available()
        and all(t.dtype is torch.float32 and t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors)
        and native.kernels().isa() != "scalar"
    )


def forward(segments: Sequence[Segment], x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """``y[r] = w[e] x[r] + bias[e]`` for the rows of every segment.

    Args:
        segments: which rows belong to which expert e.
        x: (rows, I).
        w: (E, O, I), contiguous, as in the other two.
        bias: (E, O), contiguous, or None.
        y: (rows, O).
    """
    _products(_FORWARD, [(*segment, 0) for segment in segments], x, w, y, bias)


def input_grad(segments: Sequence[Segment], y: Tensor, w: Tensor, x: Tensor) -> None:
    """``x[r] = y[r] w[e]``."""
    _products(_INPUT_GRAD, [(*segment, 0) for segment in segments], x, w, y)


def weight_grad(segments: Sequence[Segment], begun: set[int], y: Tensor, x: Tensor, w: Tensor) -> None:
    """``w[e] = Σ y[r]ᵀ x[r]`` over the rows of e, added to what is there for the experts in ``begun``."""
    seen, flagged = set(begun), []
    for expert, start, end in segments:
        flagged.append((expert, start, end, int(expert in seen)))
        seen.add(expert)
    _products(_WEIGHT_GRAD, flagged, x, w, y)


def _products(
    kind: int, segments: list[tuple[int, int, int, int]], x: Tensor, w: Tensor, y: Tensor, bias: Tensor | None = None
) -> None:
    flat = array("q", [number for segment in segments for number in segment])
    native.kernels().expert_rows(
        kind,
        flat.buffer_info()[0],
        len(segments),
        x.data_ptr(),
        x.stride(0),
        w.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        y.stride(0),
        w.shape[2],
        w.shape[1],
        torch.get_num_threads(),
    )


def swiglu(h: Tensor, a: Tensor) -> None:
    """``a = silu(gate) ⊙ up`` with h = [gate, up]; (n, 2F) -> (n, F)."""
    _swiglu(h, a, None, None)


def swiglu_backward(h: Tensor, da: Tensor, dh: Tensor) -> None:
    """``dh``, the gradient of h, from that of :func:`swiglu`'s result."""
    _swiglu(h, None, da, dh)


def _swiglu(h: Tensor, *places: Tensor | None) -> None:
    where = [number for t in (h, *places) for number in ((0, 0) if t is None else (t.data_ptr(), t.stride(0)))]
    native.kernels().swiglu(*where, h.shape[0], h.shape[1] // 2, torch.get_num_threads())
