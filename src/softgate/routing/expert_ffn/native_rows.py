"""The compiled kernels for experts on the CPU: products of the rows of each, and the gate of SwiGLU.

All tensors of a call are of one dtype, float32 or 16 bits; sums are made in float32 and rounded once.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from softgate import native

#: Up to so many rows of an expert, reading its matrix once is faster than a product of torch.
_FEW_ROWS = 8
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FORWARD, _INPUT_GRAD, _WEIGHT_GRAD = range(3)
#: Expert, first row, row after the last.
Segment = tuple[int, int, int]


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: rows without gaps of one dtype, and vectors to do it with."""
    dtype = tensors[0].dtype
    return (
        native.available()
        and dtype in _TYPES
        and all(t.dtype is dtype and t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors)
        and native.kernels().isa() != "scalar"
    )


def most_rows() -> float:
    """Rows of an expert up to which the kernels are faster than products of torch."""
    return math.inf if native.kernels().has_matmul() else _FEW_ROWS


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
        _TYPES[w.dtype],
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
    _swiglu(h, a, None, None, None, None)


def swiglu_backward(h: Tensor, da: Tensor, w: Tensor, a: Tensor, dh: Tensor) -> Tensor:
    """From the gradient ``da`` of ``w`` times :func:`swiglu`'s result: that of w, (n,) float32.

    Args:
        h: (n, 2F).
        da: (n, F).
        w: (n,), a factor for each row.
        a: (n, F), for ``w`` times the result.
        dh: (n, 2F), for the gradient of h.
    """
    dw = torch.empty(h.shape[0])
    _swiglu(h, a, da, dh, w.float().contiguous(), dw)
    return dw


def _swiglu(h: Tensor, a: Tensor, da: Tensor | None, dh: Tensor | None, w: Tensor | None, dw: Tensor | None) -> None:
    where = [number for t in (h, a, da, dh) for number in ((0, 0) if t is None else (t.data_ptr(), t.stride(0)))]
    factors = (0 if t is None else t.data_ptr() for t in (w, dw))
    native.kernels().swiglu(_TYPES[h.dtype], *where, *factors, h.shape[0], h.shape[1] // 2, torch.get_num_threads())
