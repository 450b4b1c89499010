"""Sigmoid attention tile by tile in plain torch: O(T·D) memory, forward and backward, on any device and dtype.

Without a normalisation over keys a tile needs nothing of the others, no running maximum, sum or rescaling: results of
tiles just add up, and backward recomputes the weights P from queries and keys alone,

    dV += Pᵀ dO,   dS = (dO Vᵀ) ⊙ P ⊙ (1 - P),   dQ += scale · dS K,   dK += scale · dSᵀ Q,   db = sum dS,   de = dS

Shape suffixes: B batch (any number of leading dimensions), H query heads, G key/value heads, T queries, S keys, D
features; t and s are the rows and columns of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from softgate import dispatch
from softgate._math import masks, tiles
from softgate._math.double_backward import differentiable_gradients
from softgate._math.masks import Mask
from softgate._math.tiles import Tiles
from softgate.attention.sigmoid.reference import (
    Bias,
    bias_of_pairs,
    neg_log_visible,
    resolve_bias,
    visible_keys,
)


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bias: Bias | None = None,
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> str | None:
    """Say why this call cannot, or should not, run in tiles; None if it does."""
    if backend not in ("auto", "tiled"):
        return f"backend={backend!r} was asked for"
    if 0 in query.shape or 0 in key.shape or 0 in value.shape:
        return "a tensor is empty"
    if alibi_slopes is not None and alibi_slopes.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for alibi_slopes"
    if backend == "auto" and dispatch.mode() != "tiled" and not tiles.worthwhile(query, key):
        return "the score matrix is small enough to be held"
    return None


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bias: Bias | None = None,
    seq_len: int | None = None,
    alibi_slopes: Tensor | None = None,
    window: masks.Window | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.sigmoid_attention`."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    shift = resolve_bias(bias, seq_len, key.shape[-2])
    options = _Options(
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        shift=0.0 if isinstance(shift, Tensor) else shift,
        softcap=softcap,
        is_causal=is_causal,
        window=window,
        dropout_p=dropout_p,
        seed=int(torch.randint(2**62, ())) if dropout_p > 0.0 else 0,
    )
    bias_BH = shift if isinstance(shift, Tensor) else None
    with masks.without_autocast(query):
        return _TiledSigmoid.apply(query, key, value, bias_BH, attn_mask, alibi_slopes, options)


@dataclass(frozen=True)
class _Options:
    """What a call is given besides tensors; ``shift`` is the bias where it is not a tensor."""

    scale: float
    shift: float | Literal["neg_log_visible"]
    softcap: float | None
    is_causal: bool
    window: masks.Window | None
    dropout_p: float
    seed: int


class _Weights(NamedTuple):
    """One tile: sigmoid weights, the factor of dropout, and the slope of the soft cap (None where there is none)."""

    weights: Tensor
    dropped: Tensor | None
    cap_slope: Tensor | None


class _Walk:
    """The tiles of one call and the weights on them."""

    def __init__(self, inputs: tuple[Tensor | None, ...], options: _Options) -> None:
        query, key, value, bias, attn_mask, slopes = inputs
        assert query is not None and key is not None and value is not None
        self.query, self.key, self.value, self.options = query, key, value, options
        self.dtype = masks.accumulation_dtype(query.dtype)
        self.bias = None if bias is None else bias_of_pairs(bias, self.dtype)
        self.slopes = None if slopes is None else slopes.to(self.dtype)[..., None, None]
        self.tiles = Tiles.of(query, key, attn_mask, options.is_causal, options.window)

    def wide(self, tensor: Tensor, part: slice) -> Tensor:
        """Rows of a tensor in the accumulation dtype."""
        return tensor[..., part, :].to(self.dtype)

    def wide_kv(self, tensor: Tensor, part: slice) -> Tensor:
        """Rows of keys or values in the accumulation dtype, once for every query head."""
        return masks.expand_kv_heads(self.wide(tensor, part), self.query.shape[-3])

    def row_shift(self, rows: slice) -> Tensor | float:
        """What is added to all scores of these rows."""
        if self.options.shift != "neg_log_visible":
            return self.options.shift
        visible: Tensor | int = 0
        for cols in self.tiles.cols(rows):
            visible = visible + visible_keys(self.tiles.mask(rows, cols).allowed, cols.stop - cols.start)
        return neg_log_visible(visible, self.query.new_empty((), dtype=self.dtype))

    def weights(self, rows: slice, cols: slice, q_BHtD: Tensor, k_BHsD: Tensor, shift: Tensor | float) -> _Weights:
        """Weights of a tile; ``q_BHtD`` is scaled."""
        mask, cap_slope = self.tiles.mask(rows, cols), None
        scores = Tiles.scores(q_BHtD, k_BHsD, Mask(None, None))
        if self.options.softcap is not None:
            capped = torch.tanh(scores / self.options.softcap)
            scores, cap_slope = self.options.softcap * capped, 1.0 - capped.square()
        if self.slopes is not None:
            scores = scores - self.slopes * self.tiles.distance(rows, cols).abs().to(self.dtype)
        if mask.bias is not None:
            scores = scores + mask.bias.to(self.dtype)
        scores = scores + (shift if self.bias is None else self.bias)
        return _Weights(masks.masked_weights(torch.sigmoid(scores), mask.allowed), self.dropped(rows, cols), cap_slope)

    def dropped(self, rows: slice, cols: slice) -> Tensor | None:
        """0 or 1/(1 - p) for each pair, the same whenever this tile is visited."""
        p = self.options.dropout_p
        if p == 0.0:
            return None
        # One stream per tile, so that forward and backward may visit them in any order.
        tile = rows.start * self.tiles.keys + cols.start
        generator = torch.Generator(self.query.device).manual_seed((self.options.seed + tile) % 2**63)
        shape = (*self.query.shape[:-2], rows.stop - rows.start, cols.stop - cols.start)
        kept = torch.rand(shape, generator=generator, device=self.query.device) >= p
        return kept.to(self.dtype) / (1.0 - p)

    def forward(self) -> Tensor:
        """The output (…, H, T, Dv): a sum over tiles, of operations that autograd can record."""
        done = []
        for rows in self.tiles.rows():
            q_BHtD, shift = self.wide(self.query, rows) * self.options.scale, self.row_shift(rows)
            y_BHtD = q_BHtD.new_zeros((*q_BHtD.shape[:-1], self.value.shape[-1]))
            for cols in self.tiles.cols(rows):
                weights, dropped, _ = self.weights(rows, cols, q_BHtD, self.wide_kv(self.key, cols), shift)
                kept = weights if dropped is None else weights * dropped
                y_BHtD = y_BHtD + kept @ self.wide_kv(self.value, cols)
            done.append(y_BHtD.to(self.query.dtype))
        return torch.cat(done, dim=-2)


class _TiledSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        attn_mask: Tensor | None,
        slopes: Tensor | None,
        options: _Options,
    ) -> Tensor:
        inputs = (query, key, value, bias, attn_mask, slopes)
        ctx.save_for_backward(*inputs)
        ctx.options = options
        return _Walk(inputs, options).forward()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, wanted = ctx.saved_tensors, ctx.needs_input_grad[:5]
        with masks.without_autocast(inputs[0]):
            if torch.is_grad_enabled():  # create_graph=True: autograd records the walk, which then costs T·S memory
                found = differentiable_gradients(
                    lambda *views: _Walk((*views, inputs[5]), ctx.options).forward(), inputs[:5], wanted, grads[0]
                )
            else:
                found = _gradients(_Walk(inputs, ctx.options), inputs, wanted, grads[0])
        return (*found, None, None)


def _gradients(
    walk: _Walk, inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, bias and attn_mask, each only if it is wanted."""
    totals = [
        torch.zeros_like(x, dtype=walk.dtype, memory_format=torch.contiguous_format) if need and x is not None else None
        for x, need in zip(inputs[:5], wanted, strict=True)
    ]
    for rows in walk.tiles.rows():
        _add_row_gradients(walk, totals, rows, walk.wide(grad, rows))
    return tuple(t if t is None or x is None else t.to(x.dtype) for t, x in zip(totals, inputs, strict=False))


def _add_row_gradients(walk: _Walk, totals: list[Tensor | None], rows: slice, dy_BHtD: Tensor) -> None:
    """Add what one block of queries contributes to all gradients."""
    dq, dk, dv, dbias, dmask = totals
    scale, groups = walk.options.scale, walk.key.shape[-3]
    q_BHtD, shift = walk.wide(walk.query, rows) * scale, walk.row_shift(rows)
    for cols in walk.tiles.cols(rows):
        k_BHsD = walk.wide_kv(walk.key, cols)
        weights, dropped, cap_slope = walk.weights(rows, cols, q_BHtD, k_BHsD, shift)
        if dv is not None:
            kept = weights if dropped is None else weights * dropped
            dv[..., cols, :] += tiles.fold_kv_heads(kept.mT @ dy_BHtD, groups)
        dscores = dy_BHtD @ walk.wide_kv(walk.value, cols).mT
        dscores = dscores if dropped is None else dscores * dropped
        dscores = dscores * weights * (1.0 - weights)
        if dbias is not None:
            dbias += dscores.sum((-2, -1)).sum_to_size(dbias.shape)
        if dmask is not None:
            part = Tiles.part(dmask, rows, cols)
            part += dscores.sum_to_size(part.shape)
        if cap_slope is not None:
            dscores = dscores * cap_slope
        if dq is not None:
            dq[..., rows, :] += scale * (dscores @ k_BHsD)
        if dk is not None:
            dk[..., cols, :] += tiles.fold_kv_heads(dscores.mT @ q_BHtD, groups)
