"""Forward and backward of the experts' layer without autograd: sorted rows, block by block, deterministic.

A block's rows go through the whole expert while they are in the cache. Kept for backward are the inputs, the order and
h = W₁x; everything else is computed again there. The gradient of a router weight needs no output of an expert:
⟨g, W₂a⟩ = ⟨W₂ᵀg, a⟩, and W₂ᵀg is needed anyway.

Suffixes: S assignments in the plan's order, n those of a block, T tokens, K experts per token, D model width, F expert
width, H = 2F for gated activations and F for others, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from softgate._math.masks import accumulation_dtype
from softgate.routing.expert_ffn import plan as plans
from softgate.routing.expert_ffn.activations import backward_into, forward_into
from softgate.routing.expert_ffn.plan import Plan
from softgate.routing.expert_ffn.products import Gathered, Grouped, PerExpert, Products

#: Rows and elements of a block that are in use at once, on the CPU: what its caches hold, and enough for fast products.
_ROWS = 1024
_BLOCK = 2**21
#: So few assignments are computed one after the other, unsorted.
FEW = 8


class Experts(NamedTuple):
    """The weights: gate_up (E, H, D), down (E, D, F), biases (E, H), (E, D) or None."""

    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


class _Work(NamedTuple):
    """Rows ``start:end`` of the plan and how to multiply them."""

    start: int
    end: int
    products: Products


def sorts(backend: str, rows: int) -> bool:
    """Whether ``backend`` sorts ``rows`` assignments."""
    return not (backend == "bmm" or (backend == "sorted" and rows <= FEW))


def _cut(plan: Plan, indices: Tensor, x: Tensor, experts: Experts, backend: str) -> list[_Work]:
    count, number = indices.numel(), experts.gate_up.shape[0]
    if count == 0:
        return []
    if backend != "sorted":
        of_rows = indices.reshape(-1)[plan.order].clamp_max(number - 1)
        return [_Work(0, count, Gathered(of_rows) if backend == "bmm" else Grouped(plan.ends, of_rows))]
    return list(_per_expert(plans.segments_of(plan, indices, number), x, experts))


def _per_expert(segments: list[plans.Segment], x: Tensor, experts: Experts) -> Iterator[_Work]:
    on_cpu = x.device.type == "cpu"
    widths = experts.gate_up.shape[1] + 2 * x.shape[-1] + experts.down.shape[-1]
    count = sum(s.end - s.start for s in segments)
    # a quarter of all rows at most: what a block uses besides must stay small beside what is kept of every row
    fitting = max(128, min(_ROWS, _BLOCK // widths, count // 4)) * torch.get_num_threads()
    rows = fitting if on_cpu else max((s.end for s in segments), default=1)
    seen: set[int] = set()
    # 16-bit sums over parts of an expert's rows would be rounded after each part
    for block in plans.blocks(segments, rows, split=x.dtype.itemsize > 2):
        yield _Work(block[0].start, block[-1].end, PerExpert(block, set(seen)))
        seen.update(s.expert for s in block)


def _unassigned(plan: Plan, indices: Tensor, experts: int, backend: str) -> Tensor | None:
    """(S, 1) bool, which rows have no expert; None where the blocks leave them out anyway."""
    if backend == "sorted":
        return None
    return (indices.reshape(-1)[plan.order] >= experts)[:, None]


def _rows(source: Tensor, tokens: Tensor, hidden: Tensor | None, out: Tensor) -> Tensor:
    torch.index_select(source, 0, tokens, out=out)
    return out if hidden is None else out.masked_fill_(hidden, 0.0)


def forward(
    x: Tensor, experts: Experts, indices: Tensor, weights: Tensor, activation: str, backend: str, keep: bool
) -> tuple[Tensor, Tensor, Plan]:
    """Output (T, D), h (S, H) if ``keep`` (else without rows), and the plan."""
    number, hidden_width, width = experts.gate_up.shape
    ordered = sorts(backend, indices.numel())
    plan = plans.by_expert(indices, number) if ordered else plans.as_they_come(indices, number)
    count, narrow = indices.numel(), x.dtype.itemsize == 2
    tokens = plan.order // max(indices.shape[-1], 1)
    w_S1 = weights.reshape(-1)[plan.order, None]
    work = _cut(plan, indices, x, experts, backend)
    hidden = _unassigned(plan, indices, number, backend)
    longest = max((item.end - item.start for item in work), default=0)
    x_n, a_n = x.new_empty(longest, width), x.new_empty(longest, experts.down.shape[-1])
    h_S = x.new_empty(count if keep else 0, hidden_width)
    h_n = None if keep else x.new_empty(longest, hidden_width)
    out_S = x.new_empty(count, width)
    for start, end, products in work:
        here, n = slice(start, end), end - start
        h = h_S[here] if h_n is None else h_n[:n]
        inputs = _rows(x, tokens[here], hidden, x_n[:n])
        products.forward(inputs, experts.gate_up, experts.gate_up_bias, h)
        forward_into(activation, h, a_n[:n])
        products.forward(a_n[:n], experts.down, experts.down_bias, out_S[here])
        if narrow:
            out_S[here] = out_S[here].float().mul_(w_S1[here])
    _clear(out_S, work, hidden)
    return _combine(out_S, plan, indices.shape, None if narrow else weights), h_S, plan


def _clear(rows: Tensor, work: list[_Work], hidden: Tensor | None) -> None:
    """Zero the rows that belong to no expert: no product has written them."""
    if hidden is not None:
        rows.masked_fill_(hidden, 0.0)
        return
    last = 0
    for start, end, products in work:
        rows[last:start] = 0.0
        last = end
        if isinstance(products, PerExpert) and len(products.sizes) > len(products.places):
            for place, piece in enumerate(rows[start:end].split_with_sizes(products.sizes)):
                if place not in products.places:
                    piece.zero_()
    rows[last:] = 0.0


def _combine(rows_S: Tensor, plan: Plan, shape: torch.Size, weights: Tensor | None) -> Tensor:
    """Sum over each token's K rows, in the order of k and in float32 or wider: (S, D) -> (T, D)."""
    if shape.numel() == 0:
        return rows_S.new_zeros(shape[0], rows_S.shape[-1])
    places_TK = plans.inverse(plan.order).view(shape)
    return functional.embedding_bag(places_TK, rows_S, per_sample_weights=weights, mode="sum")


class Gradients(NamedTuple):
    """Gradients of the op's tensors; those that nobody needs have no elements."""

    x: Tensor
    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor
    down_bias: Tensor
    weights: Tensor


def backward(
    grad: Tensor,
    x: Tensor,
    experts: Experts,
    indices: Tensor,
    weights: Tensor,
    h_S: Tensor,
    plan: Plan,
    activation: str,
    backend: str,
    needs: tuple[bool, ...],
) -> Gradients:
    """Gradients of :func:`forward`; ``needs`` says of x, gate_up, down, both biases and weights which are wanted."""
    number, hidden_width, width = experts.gate_up.shape
    count = indices.numel()
    tokens = plan.order // max(indices.shape[-1], 1)
    w_S1 = weights.reshape(-1)[plan.order, None]
    work = _cut(plan, indices, x, experts, backend)
    hidden = _unassigned(plan, indices, number, backend)
    longest = max((item.end - item.start for item in work), default=0)
    features = experts.down.shape[-1]
    sizes = (width, width, features, features, hidden_width, 0 if h_S.shape[0] else hidden_width)
    scratch = [x.new_empty(longest, size) for size in sizes]
    dx_S = x.new_empty(count if needs[0] else 0, width)
    dw_S = w_S1.new_empty(count, 1)
    found = _weight_gradients(experts, needs, backend, count)
    for item in work:
        here, n = slice(item.start, item.end), item.end - item.start
        inputs, g, a, da, dh, spare = (s[:n] for s in scratch)
        _rows(x, tokens[here], hidden, inputs)
        _rows(grad, tokens[here], hidden, g)
        h = h_S[here] if h_S.shape[0] else spare
        if not h_S.shape[0]:
            item.products.forward(inputs, experts.gate_up, experts.gate_up_bias, h)
        out = dx_S[here] if needs[0] else None
        dw_S[here] = _block(item.products, experts, h, inputs, g, a, da, dh, w_S1[here], activation, found, out)
    _finish(found, work, number)
    dw_S = _cleared(dw_S, work, hidden) if needs[5] else dw_S
    dx = _combine(_cleared(dx_S, work, hidden), plan, indices.shape, None) if needs[0] else dx_S
    dweights = dw_S[plans.inverse(plan.order)].view(indices.shape) if needs[5] else dw_S[:0, 0]
    dgate_up, ddown, dgate_up_bias, ddown_bias = (tensor.to(x.dtype) for tensor in found)
    return Gradients(dx, dgate_up, ddown, dgate_up_bias, ddown_bias, dweights)


def _cleared(rows: Tensor, work: list[_Work], hidden: Tensor | None) -> Tensor:
    _clear(rows, work, hidden)
    return rows


def _block(
    products: Products,
    experts: Experts,
    h: Tensor,
    x: Tensor,
    g: Tensor,
    a: Tensor,
    da: Tensor,
    dh: Tensor,
    w: Tensor,
    activation: str,
    found: list[Tensor],
    dx: Tensor | None,
) -> Tensor:
    """Add one block to the gradients ``found``, write its ``dx``, and return the gradients of its router weights."""
    dgate_up, ddown, dgate_up_bias, ddown_bias = found
    products.input_grad(g, experts.down, da)
    dw = backward_into(activation, h, da, w, a, dh)
    if experts.down_bias is not None:
        wide = dw.dtype
        dw += (g.to(wide) * _rows_of(products, experts.down_bias, g).to(wide)).sum(-1, keepdim=True)
    if ddown.numel():
        products.weight_grad(g, a, ddown)
    if ddown_bias.numel():
        products.bias_grad(g * w, ddown_bias)
    if dgate_up.numel():
        products.weight_grad(dh, x, dgate_up)
    if dgate_up_bias.numel():
        products.bias_grad(dh, dgate_up_bias)
    if dx is not None:
        products.input_grad(dh, experts.gate_up, dx)
    return dw


def _rows_of(products: Products, bias: Tensor, like: Tensor) -> Tensor:
    """The bias of each row's expert."""
    if isinstance(products, Grouped | Gathered):
        return bias[products.experts_of_rows]
    out = torch.empty_like(like)
    assert isinstance(products, PerExpert)
    for expert, piece in zip(products.experts, products.pieces(out), strict=True):
        piece.copy_(bias[expert])
    return out


def _weight_gradients(experts: Experts, needs: tuple[bool, ...], backend: str, count: int) -> list[Tensor]:
    found = []
    for place, (tensor, need) in enumerate(zip(experts, needs[1:5], strict=True)):
        if tensor is None or not need:
            found.append(experts.gate_up.new_empty(0))
        elif place < 2 and backend != "bmm" and count:
            found.append(tensor.new_empty(tensor.shape))
        else:
            found.append(tensor.new_zeros(tensor.shape, dtype=accumulation_dtype(tensor.dtype)))
    return found


def _finish(found: list[Tensor], work: list[_Work], number: int) -> None:
    """Zero the matrices of experts that had no row, where the products wrote only those that had."""
    per_expert = [item.products for item in work if isinstance(item.products, PerExpert)]
    if len(per_expert) != len(work) or not work:
        if not work:
            for tensor in found:
                tensor.zero_()
        return
    had_rows = {expert for products in per_expert for expert in products.experts}
    for expert in set(range(number)) - had_rows:
        for tensor in found[:2]:
            if tensor.numel():
                tensor[expert].zero_()
