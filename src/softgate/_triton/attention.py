"""Launches the attention kernels, and their place in autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from softgate._math.double_backward import differentiable_gradients
from softgate._triton import maps, tiles
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
    """

    map: int
    scale: float
    left: int | None
    right: int | None
    reference: Callable[..., Tensor]
    gamma: float = 0.0
    zeta: float = 1.0
    power: float = 1.0

    def constants(self, query: Tensor, value: Tensor) -> dict[str, Any]:
        """Compile-time arguments that all kernels share."""
        return {
            "MAP": self.map,
            "POWER": int(self.power) if float(self.power).is_integer() and self.power < 64 else -1,
            "PRODUCT": tiles.product_kind(query.dtype),
            "WIDTH_D": tiles.width(query.shape[-1]),
            "WIDTH_V": tiles.width(value.shape[-1]),
            **tiles.blocks(max(query.shape[-1], value.shape[-1]), query.dtype),
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

    Returns:
        (B, H, T, Dv) in the dtype of ``query``.
    """
    result: Tensor = _Attention.apply(query, key, value, gate, head_bias, mask, slopes, counts, offsets, call)
    return result


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
        call: Call,
    ) -> Tensor:
        batch, heads, length = query.shape[:3]
        out = query.new_empty(batch, heads, length, value.shape[-1])
        stats = query.new_zeros((maps.ROWS[call.map], batch, heads, length), dtype=torch.float32)
        full_gate = None if gate is None else gate.expand(batch, heads, length, gate.shape[-1])
        kind = 0 if gate is None else (1 if gate.shape[-1] == 1 and value.shape[-1] != 1 else 2)
        masked = _mask(mask, query, key)
        constants = call.constants(query, value)
        forward[(triton.cdiv(length, constants["BLOCK_M"]), batch * heads)](
            query, key, value, out, *(_or(x, query) for x in (full_gate,)), masked[0],
            *(_or(x, query) for x in (_flat(head_bias), _flat(slopes), _flat(counts), _flat(offsets))),
            _or(stats if len(stats) else None, query),
            *query.stride(), *key.stride(), *value.stride(), *out.stride(),
            *(full_gate.stride() if full_gate is not None else (0, 0, 0, 0)), *masked[1:5],
            *call.numbers(), heads, key.shape[1], length, key.shape[2], query.shape[3], value.shape[3],
            *call.window(), batch * heads * length,
            MASK=masked[5], GATE=kind, BIAS=head_bias is not None, ALIBI=slopes is not None, **constants,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, gate, head_bias, mask, slopes, out, stats)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, head_bias, mask, slopes, out, stats = ctx.saved_tensors
        inputs = (query, key, value, gate, head_bias)
        if torch.is_grad_enabled():  # create_graph=True: these kernels have no derivative of their own
            found = differentiable_gradients(ctx.call.reference, inputs, ctx.needs_input_grad[:5], grads[0])
            return (*found, *5 * (None,))
        dout, dgate = grads[0], None
        products = dout.float() * out.float()
        if gate is not None:
            openness = torch.sigmoid(gate.float())
            dgate = (products.sum_to_size(gate.shape) * (1.0 - openness)).to(gate.dtype)
            dout = (dout.float() * openness).to(dout.dtype)
        # A copy, completed in place: what forward kept must serve another backward pass (retain_graph=True).
        launch = _Backward(query, key, value, dout.contiguous(), head_bias, mask, slopes, stats.clone(), ctx.call)
        launch.row_statistics(products.sum(-1))
        dq, dbias = launch.queries()
        dk, dv = launch.keys_and_values()
        return dq, dk, dv, dgate, dbias, *5 * (None,)


class _Backward:
    """The kernels of one backward pass and the arguments they share."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dout: Tensor,
        head_bias: Tensor | None,
        mask: Tensor | None,
        slopes: Tensor | None,
        stats: Tensor,
        call: Call,
    ) -> None:
        self.query, self.key, self.value, self.head_bias, self.stats, self.call = (
            query, key, value, head_bias, stats, call,
        )  # fmt: skip
        masked = _mask(mask, query, key)
        heads, length = query.shape[1:3]
        kept = _or(stats if len(stats) else None, query)
        self.tensors = (
            query,
            key,
            value,
            dout,
            masked[0],
            _or(_flat(head_bias), query),
            _or(_flat(slopes), query),
            kept,
        )
        self.sizes = (
            *query.stride(), *key.stride(), *value.stride(), *dout.stride(), *masked[1:5], *call.numbers(),
            heads, key.shape[1], length, key.shape[2], query.shape[3], value.shape[3], *call.window(),
            query.shape[0] * heads * length,
        )  # fmt: skip
        self.constants = {
            **call.constants(query, value),
            "COUNT": maps.ROWS[call.map],
            "MASK": masked[5],
            "BIAS": head_bias is not None,
            "ALIBI": slopes is not None,
        }
        self.by_rows = (triton.cdiv(length, self.constants["BLOCK_M"]), query.shape[0] * heads)
        self.by_cols = (triton.cdiv(key.shape[2], self.constants["BLOCK_N"]), key.shape[0] * key.shape[1])

    def row_statistics(self, delta: Tensor) -> None:
        """Complete the row statistics: Δ, which is rowsum(dY ⊙ Y) but for clipped weights, and E."""
        if self.call.map in (maps.SOFTMAX, maps.LSSA):
            self.stats[1] = delta
        elif self.call.map == maps.LSSAR:
            self.stats[5] = delta
        if self.call.map in (maps.CLIPPED, maps.LSSAR):
            sums = torch.empty_like(self.stats[0])
            row_sums[self.by_rows](*self.tensors, sums, *self.sizes, **self.constants)
            self.stats[1 if self.call.map == maps.CLIPPED else 6] = sums

    def queries(self) -> tuple[Tensor, Tensor | None]:
        """Gradients of the queries and of the heads' biases."""
        dq = torch.empty(self.query.shape, dtype=self.query.dtype, device=self.query.device)
        per_row = None
        if self.head_bias is not None:
            per_row = torch.empty(self.query.shape[:3], dtype=torch.float32, device=self.query.device)
        queries[self.by_rows](*self.tensors, dq, _or(per_row, dq), *self.sizes, **self.constants)
        dbias = None
        if per_row is not None and self.head_bias is not None:
            dbias = per_row.sum((0, 2)).to(self.head_bias.dtype)
        return dq, dbias

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Gradients of keys and values."""
        dk = torch.empty(self.key.shape, dtype=self.key.dtype, device=self.key.device)
        dv = torch.empty(self.value.shape, dtype=self.value.dtype, device=self.value.device)
        keys_and_values[self.by_cols](*self.tensors, dk, dv, *self.sizes, **self.constants)
        return dk, dv


def _mask(mask: Tensor | None, query: Tensor, key: Tensor) -> tuple[Any, ...]:
    return tiles.mask_arguments(mask, (*query.shape[:3], key.shape[2]), query)


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """``tensor``, or any pointer where the kernel has none to read."""
    return stand_in if tensor is None else tensor
