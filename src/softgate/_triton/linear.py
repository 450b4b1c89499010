"""Causal linear attention with a normaliser, in chunks: a state carries the past, a small matrix product the chunk.

For features φ(q), φ(k) of width F, with S_t = Σ_{j≤t} φ(k_j) v_jᵀ and z_t = Σ_{j≤t} φ(k_j):

    O_t = φ(q_t)ᵀ S_t / D_t,   D_t = φ(q_t)·z_t + floor_t

Backward, with g = dO / D and c = (dO·O) / D, is linear attention again: forwards for the queries, from the end for keys
and values,

    dφ(q_t) = Σ_{j≤t} φ(k_j) (v_j·g_t - c_t)
    dφ(k_j) = Σ_{t≥j} φ(q_t) (v_j·g_t - c_t),   dv_j = Σ_{t≥j} (φ(q_t)·φ(k_j)) g_t

Only the O(T) arrays are kept; the states are computed anew. A sequence is cut into segments, whose first states are
running sums of the segments' own products, so that all segments are worked on at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._triton import interpreting, tiles
from softgate._triton.tiles import load, product, store

#: How products are computed, by what results are rounded to. Outputs are means with weights that are not negative: one
#: product of tf32 is enough for 8 bits. Gradients are differences and may cancel.
_FORWARD = {torch.float32: tiles.EXACT, torch.float16: tiles.SPLIT, torch.bfloat16: tiles.TF32}
_BACKWARD = {torch.float32: tiles.EXACT, torch.float16: tiles.SPLIT, torch.bfloat16: tiles.SPLIT}


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, floor_ptr, state_ptr, sums_ptr, out_ptr, den_ptr,
    sqb, sqh, sqt, sqf, skb, skh, skt, skf, svb, svh, svt, svd, H, G, T, F, DV, SEGMENT,
    WIDTH_F: tl.constexpr, WIDTH_V: tl.constexpr, CHUNK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Outputs (contiguous (B, H, T, Dv)) and denominators (B, H, T) of a segment; ``floor`` is like the latter."""
    batch_head = tl.program_id(0).to(tl.int64)
    b, h = batch_head // H, batch_head % H
    group = h // (H // G)
    features, out_features, within = tl.arange(0, WIDTH_F), tl.arange(0, WIDTH_V), tl.arange(0, CHUNK)
    place = (b * G + group) * tl.num_programs(1) + tl.program_id(1)
    state = load(state_ptr + place * F * DV, features, DV, out_features, 1, F, DV)
    sums = tl.load(sums_ptr + place * F + features, mask=features < F, other=0.0)
    begin = tl.program_id(1) * SEGMENT
    for first in range(begin, tl.minimum(begin + SEGMENT, T), CHUNK):
        rows = first + within
        q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqf, T, F)
        k = load(k_ptr + b * skb + group * skh, rows, skt, features, skf, T, F)
        v = load(v_ptr + b * svb + group * svh, rows, svt, out_features, svd, T, DV)
        pairs = product(q, tl.trans(k), PRODUCT)
        pairs = tl.where(within[:, None] >= within[None, :], pairs, 0.0)
        numerator = product(pairs.to(v.dtype), v, PRODUCT) + product(q, state.to(q.dtype), PRODUCT)
        past = tl.sum(q.to(tl.float32) * sums[None, :], 1)
        floor = tl.load(floor_ptr + batch_head * T + rows, mask=rows < T, other=1.0)
        denominator = past + tl.sum(pairs, 1) + floor
        tl.store(den_ptr + batch_head * T + rows, denominator, mask=rows < T)
        safe = tl.where(rows < T, denominator, 1.0)
        store(out_ptr + batch_head * T * DV, rows, DV, out_features, 1, T, DV, numerator / safe[:, None])
        state += product(tl.trans(k), v, PRODUCT)
        sums += tl.sum(k.to(tl.float32), 0)


@triton.jit
def queries_kernel(
    k_ptr, v_ptr, grad_ptr, shift_ptr, state_ptr, sums_ptr, dq_ptr, skb, skh, skt, skf, svb, svh, svt, svd,
    H, G, T, F, DV, SEGMENT,
    WIDTH_F: tl.constexpr, WIDTH_V: tl.constexpr, CHUNK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Gradient of the query features of a segment; ``grad`` is g, ``shift`` is c, both contiguous."""
    batch_head = tl.program_id(0).to(tl.int64)
    b, h = batch_head // H, batch_head % H
    group = h // (H // G)
    features, out_features, within = tl.arange(0, WIDTH_F), tl.arange(0, WIDTH_V), tl.arange(0, CHUNK)
    place = (b * G + group) * tl.num_programs(1) + tl.program_id(1)
    state = load(state_ptr + place * F * DV, out_features, 1, features, DV, DV, F)
    sums = tl.load(sums_ptr + place * F + features, mask=features < F, other=0.0)
    begin = tl.program_id(1) * SEGMENT
    for first in range(begin, tl.minimum(begin + SEGMENT, T), CHUNK):
        rows = first + within
        k = load(k_ptr + b * skb + group * skh, rows, skt, features, skf, T, F)
        v = load(v_ptr + b * svb + group * svh, rows, svt, out_features, svd, T, DV)
        g = load(grad_ptr + batch_head * T * DV, rows, DV, out_features, 1, T, DV)
        c = tl.load(shift_ptr + batch_head * T + rows, mask=rows < T, other=0.0)
        pairs = product(g, tl.trans(v.to(g.dtype)), PRODUCT) - c[:, None]
        pairs = tl.where(within[:, None] >= within[None, :], pairs, 0.0)
        dq = product(pairs, k.to(tl.float32), PRODUCT) + product(g, state, PRODUCT) - c[:, None] * sums[None, :]
        store(dq_ptr + batch_head * T * F, rows, F, features, 1, T, F, dq)
        state += product(tl.trans(v), k, PRODUCT)
        sums += tl.sum(k.to(tl.float32), 0)


@triton.jit
def keys_values_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, shift_ptr, state_ptr, sums_ptr, dk_ptr, dv_ptr,
    sqb, sqh, sqt, sqf, skb, skh, skt, skf, svb, svh, svt, svd, H, G, T, F, DV, SEGMENT,
    WIDTH_F: tl.constexpr, WIDTH_V: tl.constexpr, CHUNK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Gradients of a segment's key features and values as one query head sees them, from the last chunk on."""
    batch_head = tl.program_id(0).to(tl.int64)
    b, h = batch_head // H, batch_head % H
    group = h // (H // G)
    features, out_features, within = tl.arange(0, WIDTH_F), tl.arange(0, WIDTH_V), tl.arange(0, CHUNK)
    place = batch_head * tl.num_programs(1) + tl.program_id(1)
    state = load(state_ptr + place * F * DV, features, DV, out_features, 1, F, DV)
    sums = tl.load(sums_ptr + place * F + features, mask=features < F, other=0.0)
    begin = tl.program_id(1) * SEGMENT
    chunks = (tl.minimum(SEGMENT, T - begin) + CHUNK - 1) // CHUNK
    for index in range(0, chunks):
        rows = begin + (chunks - 1 - index) * CHUNK + within
        q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqf, T, F).to(tl.float32)
        k = load(k_ptr + b * skb + group * skh, rows, skt, features, skf, T, F).to(tl.float32)
        v = load(v_ptr + b * svb + group * svh, rows, svt, out_features, svd, T, DV).to(tl.float32)
        g = load(grad_ptr + batch_head * T * DV, rows, DV, out_features, 1, T, DV)
        c = tl.load(shift_ptr + batch_head * T + rows, mask=rows < T, other=0.0)
        later = within[None, :] >= within[:, None]  # row: the key, column: a query not before it
        slopes = tl.where(later, product(v, tl.trans(g), PRODUCT) - c[None, :], 0.0)
        pairs = tl.where(later, product(k, tl.trans(q), PRODUCT), 0.0)
        dk = product(slopes, q, PRODUCT) + product(v, tl.trans(state), PRODUCT) - sums[None, :]
        dv = product(pairs, g, PRODUCT) + product(k, state, PRODUCT)
        store(dk_ptr + batch_head * T * F, rows, F, features, 1, T, F, dk)
        store(dv_ptr + batch_head * T * DV, rows, DV, out_features, 1, T, DV, dv)
        state += product(tl.trans(q), g, PRODUCT)
        sums += tl.sum(q * c[:, None], 0)


def causal_linear_attention(
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    floor: Tensor,
    reference: Callable[..., Tensor],
    *,
    rounded_to: torch.dtype = torch.float32,
) -> Tensor:
    """Normalised causal linear attention by the kernels; gradients for all three tensors.

    Args:
        query_features: φ(q), (B, H, T, F), none of the sizes 0.
        key_features: φ(k), (B, G, T, F).
        value: (B, G, T, Dv).
        floor: (B, H, T), added to the denominators; gets no gradient.
        reference: the same outputs in plain torch, for derivatives of the gradient.
        rounded_to: what the caller rounds the result to, which decides how exact its products need to be.

    Returns:
        (B, H, T, Dv) in float32.
    """
    result: Tensor = _CausalLinear.apply(query_features, key_features, value, floor, reference, rounded_to)
    return result


class _CausalLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        floor: Tensor,
        reference: Callable[..., Tensor],
        rounded_to: torch.dtype,
    ) -> Tensor:
        batch, heads, length = query.shape[:3]
        out = torch.empty((batch, heads, length, value.shape[3]), dtype=torch.float32, device=query.device)
        denominator = torch.empty((batch, heads, length), dtype=torch.float32, device=query.device)
        segment = _segment(query)
        past = _sums_before(key, value, segment)
        forward_kernel[(batch * heads, triton.cdiv(length, segment))](
            query, key, value, floor.float().contiguous(), *past, out, denominator,
            *query.stride(), *key.stride(), *value.stride(),
            heads, key.shape[1], length, query.shape[3], value.shape[3], segment,
            **_constants(query, value, _FORWARD[rounded_to]),
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, out, denominator)
        ctx.reference, ctx.rounded_to = reference, rounded_to
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, denominator = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            found = differentiable_gradients(ctx.reference, (query, key, value), ctx.needs_input_grad[:3], grads[0])
            return (*found, None, None, None)
        batch, heads, length, features = query.shape
        groups, width = key.shape[1], value.shape[3]
        g = (grads[0].float() / denominator[..., None]).contiguous()
        c = (g * out).sum(-1)
        dq = torch.empty((batch, heads, length, features), dtype=torch.float32, device=query.device)
        dk = torch.empty_like(dq)
        dv = torch.empty_like(out)
        segment, constants = _segment(query), _constants(query, value, _BACKWARD[ctx.rounded_to])
        grid, sizes = (batch * heads, triton.cdiv(length, segment)), (heads, groups, length, features, width, segment)
        queries_kernel[grid](
            key, value, g, c, *_sums_before(key, value, segment), dq, *key.stride(), *value.stride(), *sizes,
            **constants,
        )  # fmt: skip
        keys_values_kernel[grid](
            query, key, value, g, c, *_sums_after(query, g, c, segment), dk, dv, *query.stride(), *key.stride(),
            *value.stride(), *sizes, **constants,
        )  # fmt: skip
        if heads != groups:
            dk, dv = (x.unflatten(1, (groups, heads // groups)).sum(2) for x in (dk, dv))
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None, None, None


def _segment(query: Tensor) -> int:
    """Positions of a segment: so many that its first state takes no more memory than a quarter of its features."""
    return 32 if interpreting() else 4 * max(64, triton.next_power_of_2(query.shape[-1]))


def _sums_before(key: Tensor, value: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    """S, (B, G, segments, F, Dv), and z, (B, G, segments, F), before each segment."""
    k, v = _segments(key, segment), _segments(value, segment)
    return _running(k.mT @ v), _running(k.sum(-2))


def _sums_after(query: Tensor, g: Tensor, c: Tensor, segment: int) -> tuple[Tensor, Tensor]:
    """Σ φ(q) gᵀ and Σ φ(q) c after each segment."""
    q = _segments(query, segment)
    sums = (q * _segments(c[..., None], segment)).sum(-2)
    return tuple(_running(x.flip(2)).flip(2).contiguous() for x in (q.mT @ _segments(g, segment), sums))  # type: ignore[return-value]


def _segments(x: Tensor, segment: int) -> Tensor:
    """(B, H, T, F) as (B, H, segments, ``segment``, F) in float32, padded with zeros."""
    return torch.nn.functional.pad(x.float(), (0, 0, 0, -x.shape[2] % segment)).unflatten(2, (-1, segment))


def _running(x: Tensor) -> Tensor:
    """Sum of all segments before each."""
    return torch.cat((torch.zeros_like(x[:, :, :1]), x[:, :, :-1].cumsum(2)), 2)


def _constants(query: Tensor, value: Tensor, product_kind: int) -> dict[str, Any]:
    return {
        "WIDTH_F": tiles.width(query.shape[-1]),
        "WIDTH_V": tiles.width(value.shape[-1]),
        "CHUNK": 16 if interpreting() else 64,
        "PRODUCT": product_kind,
        "num_warps": 8 if query.shape[-1] > 64 else 4,
        "num_stages": 1,
    }
