"""The matrix products of a block of rows that are grouped by expert, in the ways a backend can do them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from softgate.routing._choice import widened
from softgate.routing.expert_ffn import native_rows
from softgate.routing.expert_ffn.plan import Segment

#: What grouped_mm computes with; it refuses float64.
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Products(Protocol):
    """Products of the rows of one block with their experts' matrices."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Out = x Wᵀ + b of each row's expert; x (n, I), weight (E, O, I), bias (E, O), out (n, O)."""

    def input_grad(self, grad: Tensor, weight: Tensor, out: Tensor) -> None:
        """Out = grad W; grad (n, O), out (n, I)."""

    def weight_grad(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """out[e] += gradᵀ x over the rows of e, written where e has had no rows before; out (E, O, I)."""

    def bias_grad(self, grad: Tensor, out: Tensor) -> None:
        """out[e] += sum of grad over the rows of e; out (E, O), zero at first."""


class PerExpert:
    """One ordinary product for each segment."""

    def __init__(self, segments: Sequence[Segment], seen: set[int]) -> None:
        """``seen`` holds the experts whose rows began in an earlier block."""
        self.experts = [segment.expert for segment in segments]
        self.segments = [
            (expert, start - segments[0].start, end - segments[0].start) for expert, start, end in segments
        ]
        self.seen = seen
        #: The rows as pieces, those between segments (which belong to no expert) included.
        self.sizes: list[int] = []
        self.places: list[int] = []
        last = segments[0].start
        for _, start, end in segments:
            if start > last:
                self.sizes.append(start - last)
            self.places.append(len(self.sizes))
            self.sizes.append(end - start)
            last = end

    def pieces(self, rows: Tensor) -> list[Tensor]:
        """The rows of each segment: views, made by one call (a slice for each costs more than a small product)."""
        found = rows.split_with_sizes(self.sizes)
        return list(found) if len(self.places) == len(found) else [found[place] for place in self.places]

    def _shared(self, matrices: Tensor, *rows: Tensor) -> tuple[list[native_rows.Segment], list[int]]:
        """The segments that the compiled kernels take, and the places of the others."""
        if not (matrices.is_contiguous() and native_rows.suits(matrices, *rows)):
            return [], list(range(len(self.segments)))
        most = native_rows.most_rows()
        taken = [s for s in self.segments if s[2] - s[1] <= most]
        return taken, [i for i, s in enumerate(self.segments) if s[2] - s[1] > most]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See :class:`Products`."""
        taken, others = self._shared(weight, x, out)
        if taken:
            native_rows.forward(taken, x, weight, None if bias is None else bias.contiguous(), out)
        if not others:
            return
        matrices, rows, results = weight.transpose(1, 2).unbind(), self.pieces(x), self.pieces(out)
        for i in others:
            expert = self.experts[i]
            if bias is None:
                torch.mm(rows[i], matrices[expert], out=results[i])
            else:
                torch.addmm(bias[expert], rows[i], matrices[expert], out=results[i])

    def input_grad(self, grad: Tensor, weight: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        taken, others = self._shared(weight, grad, out)
        if taken:
            native_rows.input_grad(taken, grad, weight, out)
        if not others:
            return
        matrices, rows, results = weight.unbind(), self.pieces(grad), self.pieces(out)
        for i in others:
            torch.mm(rows[i], matrices[self.experts[i]], out=results[i])

    def weight_grad(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        taken, others = self._shared(out, grad, x)
        if taken:
            native_rows.weight_grad(taken, self.seen, grad, x, out)
        if not others:
            return
        begun, results = {*self.seen, *(expert for expert, _, _ in taken)}, out.unbind()
        rows, inputs = self.pieces(grad), self.pieces(x)
        for i in others:
            expert = self.experts[i]
            if expert in begun:
                results[expert].addmm_(rows[i].t(), inputs[i])
            else:
                torch.mm(rows[i].t(), inputs[i], out=results[expert])
                begun.add(expert)

    def bias_grad(self, grad: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        for expert, rows in zip(self.experts, self.pieces(grad), strict=True):
            out[expert] += widened(rows).sum(0)


class Grouped:
    """torch's grouped product over all rows at once; the experts' rows need not be known on the host.

    Rows without an expert are left as they are on some devices: the caller masks them.
    """

    def __init__(self, ends: Tensor, experts_of_rows: Tensor) -> None:
        self.ends = ends.to(torch.int32)
        self.experts_of_rows = experts_of_rows

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See :class:`Products`."""
        out.copy_(functional.grouped_mm(x, weight.transpose(-2, -1), offs=self.ends))
        if bias is not None:  # refused by grouped_mm itself
            out.add_(bias[self.experts_of_rows])

    def input_grad(self, grad: Tensor, weight: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        out.copy_(functional.grouped_mm(grad, weight, offs=self.ends))

    def weight_grad(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        out.copy_(functional.grouped_mm(grad.t(), x, offs=self.ends))

    def bias_grad(self, grad: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        offsets = functional.pad(self.ends.long(), (1, 0))
        out.copy_(torch.segment_reduce(widened(grad), "sum", offsets=offsets, initial=0.0))


class Gathered:
    """A copy of its expert's matrix for each row: for a handful of rows on an accelerator, without waiting for it."""

    def __init__(self, experts_of_rows: Tensor) -> None:
        self.experts_of_rows = experts_of_rows

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """See :class:`Products`."""
        out.copy_(torch.bmm(weight[self.experts_of_rows], x[..., None])[..., 0])
        if bias is not None:
            out.add_(bias[self.experts_of_rows])

    def input_grad(self, grad: Tensor, weight: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        out.copy_(torch.bmm(grad[:, None], weight[self.experts_of_rows])[:, 0])

    def weight_grad(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """See :class:`Products`; adds one row after the other, always in the same order."""
        for row, expert in enumerate(self.experts_of_rows.split(1)):
            out.index_add_(0, expert, (widened(grad[row, :, None]) * widened(x[row]))[None])

    def bias_grad(self, grad: Tensor, out: Tensor) -> None:
        """See :class:`Products`."""
        for row, expert in enumerate(self.experts_of_rows.split(1)):
            out.index_add_(0, expert, widened(grad[row, None]))


def grouped_refuses(x: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """Why torch.nn.functional.grouped_mm cannot compute with these, None if it can."""
    if not hasattr(functional, "grouped_mm"):
        return "this version of torch has no grouped_mm"
    if x.dtype not in _GROUPED_DTYPES:
        return f"grouped_mm has no {x.dtype}"
    if not x.dtype == gate_up.dtype == down.dtype:
        return "grouped_mm needs one dtype"
    widths = (x.shape[-1], gate_up.shape[1], down.shape[-1])
    if any(width * x.dtype.itemsize % 16 for width in widths):
        return f"grouped_mm needs rows of a multiple of 16 bytes, the widths are {widths} in {x.dtype}"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "grouped_mm needs compute capability 8.0"
    return None
