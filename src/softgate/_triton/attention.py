"""Launches the attention kernels, and their place in autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._triton import maps, rows, tiles
from softgate._triton.backward import keys_and_values, queries, row_sums
from softgate._triton.forward import forward


@dataclass(frozen=True)
class Call:
    """What one call asks for beside its tensors.

    Attributes:
        map: which weights, a constant of :mod:`softgate._triton.maps`.
        scale: factor of the scores.
        left: keys a query sees before its own position; None without a limit.
        right: keys it sees after it; None without a limit.
        reference: the same outputs from the differentiable tensors (query, key, value, gate, head_bias), in plain
            torch, for derivatives of the gradient.
        gamma: lower end of the stretched weights of clipped softmax.
        zeta: their upper end.
        power: exponent of the reweighting.
        directions: whether scores are made of the directions of queries and keys alone.
    """

    map: int
    scale: float
    left: int | None
    right: int | None
    reference: Callable[..., Tensor]
    gamma: float = 0.0
    zeta: float = 1.0
    power: float = 1.0
    directions: bool = False

    def constants(self, query: Tensor, value: Tensor, kernel: str) -> dict[str, Any]:
        """Compile-time arguments that all kernels share, and launch options of one."""
        return {
            "MAP": self.map,
            "POWER": int(self.power) if float(self.power).is_integer() and self.power < 64 else -1,
            "PRODUCT": tiles.product_kind(query.dtype),
            "WIDTH_D": tiles.width(query.shape[-1]),
            "WIDTH_V": tiles.width(value.shape[-1]),
            "LEFT_EDGE": self.left is not None,
            "RIGHT_EDGE": self.right is not None,
            **tiles.blocks(kernel, self.map, max(query.shape[-1], value.shape[-1]), query.dtype),
        }

    def numbers(self) -> tuple[float, float, float, float]:
        """Run-time scalars in the order of the kernels' arguments."""
        return self.scale, self.gamma, self.zeta, float(self.power)

    def window(self) -> tuple[int, int]:
        """Limits to both sides as the kernels take them."""
        return tuple(tiles.UNLIMITED if limit is None else limit for limit in (self.left, self.right))  # type: ignore[return-value]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: Call,
    *,
    gate: Tensor | None = None,
    mask: Tensor | None = None,
    head_bias: Tensor | None = None,
    slopes: Tensor | None = None,
    counts: Tensor | None = None,
    offsets: Tensor | None = None,
    row_factor: Tensor | None = None,
) -> Tensor:
    """Attention by the kernels; gradients for query, key, value, gate and head_bias.

    Args:
        query: (B, H, T, D), none of the sizes 0.
        key: (B, G, S, D).
        value: (B, G, S, Dv).
        call: what to compute.
        gate: logits (B, H or 1, T, Dv or 1) of a sigmoid that multiplies the output; softmax only.
        mask: bool or float, broadcastable to (B, H, T, S), or None.
        head_bias: (H,) added to the scores of a head; sigmoid only.
        slopes: (H,) ALiBi slopes; sigmoid only.
        counts: (B, H, T) keys that each query may see; reweighted softplus only.
        offsets: (B, H, T) level subtracted before the power; reweighted softplus only.
        row_factor: (B, H, T) in float32, what the scores of each query are multiplied by; needed for directions, and
            then instead of ``call.scale``.

    Returns:
        (B, H, T, Dv) in the dtype of ``query``.
    """
    width = value.shape[-1]
    if query.dtype.itemsize == 2 and (query.shape[-1] % tiles.ALIGNED or width % tiles.ALIGNED):
        if gate is not None and gate.shape[-1] == width:
            gate = _aligned(gate)
        query, key, value = _aligned(query), _aligned(key), _aligned(value)
    constants = (mask, slopes, counts, offsets, row_factor, call)
    result: Tensor = _Attention.apply(query, key, value, gate, head_bias, *constants)
    return result if result.shape[-1] == width else result[..., :width].contiguous()


def _aligned(x: Tensor) -> Tensor:
    """``x`` with zeros for further features, so that every row starts where the fast loads of a GPU can start."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % tiles.ALIGNED))


@dataclass(frozen=True)
class _Vectors:
    """Queries and keys as the kernels take them: as they are, or as multiples of their directions.

    ``by_row`` and ``by_col`` multiply the scores, ``sizes`` are what the vectors were multiplied by.
    """

    query: Tensor
    key: Tensor
    by_row: Tensor | None = None
    by_col: Tensor | None = None
    sizes: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, query: Tensor, key: Tensor, row_factor: Tensor | None, call: Call) -> _Vectors:
        if row_factor is None:
            return cls(query, key)
        if not call.directions:
            ones = torch.ones(key.shape[:3], dtype=torch.float32, device=key.device)
            return cls(query, key, row_factor.contiguous(), ones)
        (q, by_row, q_size), (k, by_col, k_size) = rows.directions(query), rows.directions(key)
        return cls(q, k, by_row * row_factor, by_col, (q_size, k_size))

    def empty_gradient(self, vectors: Tensor) -> Tensor:
        """Where a kernel writes; the part along a vector is taken out before it is rounded, as most of it may go."""
        dtype = vectors.dtype if self.sizes is None else torch.float32
        return torch.empty(vectors.shape, dtype=dtype, device=vectors.device)

    def gradients(self, dq: Tensor | None, dk: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the vectors given, from those of ``query`` and ``key``."""
        if self.sizes is None:
            return dq, dk
        return (
            None if dq is None else rows.tangents(dq, self.query, self.sizes[0]),
            None if dk is None else rows.tangents(dk, self.key, self.sizes[1]),
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor | None,
        head_bias: Tensor | None,
        mask: Tensor | None,
        slopes: Tensor | None,
        counts: Tensor | None,
        offsets: Tensor | None,
        row_factor: Tensor | None,
        call: Call,
    ) -> Tensor:
        vectors = _Vectors.of(query, key, row_factor, call)
        q, k = vectors.query, vectors.key
        batch, heads, length = query.shape[:3]
        out = query.new_empty(batch, heads, length, value.shape[-1])
        stats = query.new_empty((maps.ROWS[call.map], batch, heads, length), dtype=torch.float32)
        full_gate = None if gate is None else gate.expand(batch, heads, length, gate.shape[-1])
        kind = 0 if gate is None else (1 if gate.shape[-1] == 1 and value.shape[-1] != 1 else 2)
        masked = _mask(mask, query, key)
        constants = call.constants(query, value, "forward")
        forward[(triton.cdiv(length, constants["BLOCK_M"]), batch * heads)](
            q, k, value, out, *(_or(x, query) for x in (full_gate,)), masked[0],
            *(_or(_flat(x), query) for x in (head_bias, slopes, counts, offsets, vectors.by_row, vectors.by_col)),
            _or(stats if len(stats) else None, query),
            *q.stride(), *k.stride(), *value.stride(), *out.stride(),
            *(full_gate.stride() if full_gate is not None else (0, 0, 0, 0)), *masked[1:5],
            *call.numbers(), heads, key.shape[1], length, key.shape[2], query.shape[3], value.shape[3],
            *call.window(), batch * heads * length,
            MASK=masked[5], GATE=kind, BIAS=head_bias is not None, ALIBI=slopes is not None,
            FACTORS=row_factor is not None, **constants,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, gate, head_bias, mask, slopes, row_factor, out, stats)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, head_bias, mask, slopes, row_factor, out, stats = ctx.saved_tensors
        inputs, call = (query, key, value, gate, head_bias), ctx.call
        needed = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():  # create_graph=True: these kernels have no derivative of their own
            return (*differentiable_gradients(call.reference, inputs, needed, grads[0]), *6 * (None,))
        dout, dgate, delta = grads[0].contiguous(), None, None
        if gate is not None:
            products, openness = dout.float() * out.float(), torch.sigmoid(gate.float())
            dgate = (products.sum_to_size(gate.shape) * (1.0 - openness)).to(gate.dtype)
            dout, delta = (dout.float() * openness).to(dout.dtype).contiguous(), products.sum(-1)
        elif call.map in (maps.SOFTMAX, maps.LSSA) or (call.map == maps.LSSAR and row_factor is None):
            delta = rows.row_products(dout, out)
        vectors = _Vectors.of(query, key, row_factor, call)
        # A copy, completed in place: what forward kept must serve another backward pass (retain_graph=True).
        launch = _Backward(vectors, value, dout, head_bias, mask, slopes, stats.clone(), call)
        launch.row_statistics(delta)
        dq, dbias = launch.queries(needed[4]) if needed[0] or needed[4] else (None, None)
        dk, dv = launch.keys_and_values() if needed[1] or needed[2] else (None, None)
        return *vectors.gradients(dq, dk), dv, dgate, dbias, *6 * (None,)


class _Backward:
    """The kernels of one backward pass and the arguments they share."""

    def __init__(
        self,
        vectors: _Vectors,
        value: Tensor,
        dout: Tensor,
        head_bias: Tensor | None,
        mask: Tensor | None,
        slopes: Tensor | None,
        stats: Tensor,
        call: Call,
    ) -> None:
        self.vectors, self.value, self.head_bias, self.stats, self.call = vectors, value, head_bias, stats, call
        query, key = vectors.query, vectors.key
        masked = _mask(mask, query, key)
        self.tensors = (
            query,
            key,
            value,
            dout,
            masked[0],
            _or(_flat(head_bias), query),
            _or(_flat(slopes), query),
            _or(vectors.by_row, query),
            _or(vectors.by_col, query),
            _or(stats if len(stats) else None, query),
        )
        heads, length = query.shape[1:3]
        self.sizes = (
            *query.stride(), *key.stride(), *value.stride(), *dout.stride(), *masked[1:5], *call.numbers(),
            heads, key.shape[1], length, key.shape[2], query.shape[3], value.shape[3], *call.window(),
            query.shape[0] * heads * length,
        )  # fmt: skip
        self.flags = {
            "COUNT": maps.ROWS[call.map],
            "MASK": masked[5],
            "BIAS": head_bias is not None,
            "ALIBI": slopes is not None,
            "FACTORS": vectors.by_row is not None,
        }

    def _by_rows(self) -> tuple[tuple[int, int], dict[str, Any]]:
        """Grid and compile-time arguments of a kernel with a program for each block of queries."""
        batch, heads, length = self.vectors.query.shape[:3]
        constants = self.call.constants(self.vectors.query, self.value, "queries")
        return (triton.cdiv(length, constants["BLOCK_M"]), batch * heads), {**constants, **self.flags}

    def row_statistics(self, delta: Tensor | None) -> None:
        """Complete the row statistics: Δ, which is rowsum(dY ⊙ Y) but for clipped weights, and E."""
        if delta is not None:
            self.stats[5 if self.call.map == maps.LSSAR else 1] = delta
        if self.call.map in (maps.CLIPPED, maps.LSSAR):
            grid, constants = self._by_rows()
            sums = torch.empty_like(self.stats[:2])
            row_sums[grid](*self.tensors, sums, *self.sizes, **constants)
            self.stats[1 if self.call.map == maps.CLIPPED else 6] = sums[0]
            if self.flags["FACTORS"]:
                self.stats[5] = sums[1]

    def queries(self, with_bias: bool) -> tuple[Tensor, Tensor | None]:
        """Gradients of the queries and of the heads' biases."""
        query, per_row = self.vectors.query, None
        dq = self.vectors.empty_gradient(query)
        if with_bias:
            per_row = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        grid, constants = self._by_rows()
        queries[grid](*self.tensors, dq, _or(per_row, dq), *self.sizes, **constants, DBIAS=with_bias)
        dbias = None
        if per_row is not None and self.head_bias is not None:
            dbias = per_row.sum((0, 2)).to(self.head_bias.dtype)
        return dq, dbias

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Gradients of keys and values."""
        key = self.vectors.key
        dk = self.vectors.empty_gradient(key)
        dv = torch.empty(self.value.shape, dtype=self.value.dtype, device=self.value.device)
        constants = {**self.call.constants(self.vectors.query, self.value, "keys"), **self.flags}
        grid = (triton.cdiv(key.shape[2], constants["BLOCK_N"]), key.shape[0] * key.shape[1])
        keys_and_values[grid](*self.tensors, dk, dv, *self.sizes, **constants)
        return dk, dv


def _mask(mask: Tensor | None, query: Tensor, key: Tensor) -> tuple[Any, ...]:
    return tiles.mask_arguments(mask, (*query.shape[:3], key.shape[2]), query)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """``tensor``, or any pointer where the kernel has none to read."""
    return stand_in if tensor is None else tensor
