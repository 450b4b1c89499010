"""Clipped softmax attention in tiles: memory grows with T, in plain torch on every device and dtype.

Clipping needs the normalised weights P, so the forward pass walks the keys twice: once for the largest score m and the
sum l of exp(S - m) of each row, once for O = P̃ V with P = exp(S - m) / l and P̃ = clip((ζ - γ) P + γ, 0, 1). (The
log-sum-exp alone would do, but exp(S - log-sum-exp) has the rounding error of a logarithm.) With M = 1 where nothing is
clipped and R = (M ⊙ P) V, kept from the forward pass,

    dP̃ = dO Vᵀ,   Δ = (ζ - γ) rowsum(dO ⊙ R),   dS = P ⊙ ((ζ - γ) M ⊙ dP̃ - Δ)

Δ is not rowsum(dO ⊙ O), as it is for softmax: the constant γ in P̃ has no gradient. Shape suffixes as in
:mod:`softgate._math.tiles`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.clipping import resolve_gamma
from softgate._math.double_backward import differentiable_gradients
from softgate._math.tiles import Tiles, fold_kv_heads, worthwhile
from softgate.attention.clipped.reference import clipped_softmax_attention_reference
from softgate.dispatch import is_batched_gradient, mode

_INF = float("inf")


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
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot or should not run here, None if it does."""
    if backend not in ("auto", "tiled"):
        return f"backend={backend!r} was asked for"
    if dropout_p > 0.0:
        return "it has no dropout"
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for attn_mask"
    if backend == "auto" and mode() != "tiled" and not worthwhile(query, key):
        return "the score matrix is small: the reference is faster"
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
    gamma: float | None = None,
    alpha: float | None = None,
    max_seq_len: int | None = None,
    zeta: float = 1.0,
    window: int | None = None,
    backend: str = "auto",
    block: int | None = None,
) -> Tensor:
    """Arguments and result of ``clipped_softmax_attention``; ``block`` sets the rows and columns of a tile."""
    query, key, value = masks.cast_for_autocast(query, key, value)
    with masks.without_autocast(query):
        factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        lower = resolve_gamma(gamma, alpha, max_seq_len)
        result: Tensor = _Tiled.apply(query, key, value, attn_mask, is_causal, window, factor, lower, zeta, block)
        return result


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        window: int | None,
        scale: float,
        gamma: float,
        zeta: float,
        block: int | None,
    ) -> Tensor:
        tiles = Tiles.of(query, key, attn_mask, is_causal, window, block)
        dtype = masks.accumulation_dtype(query.dtype)
        y_BHTD = query.new_empty(*query.shape[:-1], value.shape[-1])
        r_BHTD = y_BHTD.new_empty(y_BHTD.shape, dtype=dtype) if any(ctx.needs_input_grad[:3]) else None
        top_BHT1, total_BHT1 = (query.new_empty(*query.shape[:-1], 1, dtype=dtype) for _ in range(2))
        for rows in tiles.rows():
            q_BHtD = query[..., rows, :].to(dtype) * scale
            scores = _Scores(tiles, rows, q_BHtD, key)
            top_BHT1[..., rows, :], total_BHT1[..., rows, :] = scores.top_and_total()
            weights = _Softmax(scores, top_BHT1[..., rows, :], total_BHT1[..., rows, :])
            sums = _weighted_values(weights, value, gamma, zeta, r_BHTD is None)
            y_BHTD[..., rows, :] = sums[0]
            if r_BHTD is not None:
                r_BHTD[..., rows, :] = sums[1]
        ctx.save_for_backward(query, key, value, attn_mask, top_BHT1, total_BHT1, r_BHTD)
        ctx.options = {"is_causal": is_causal, "window": window, "scale": scale}
        ctx.gamma, ctx.zeta, ctx.block = gamma, zeta, block
        return y_BHTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, attn_mask, top_BHT1, total_BHT1, r_BHTD = ctx.saved_tensors
        if torch.is_grad_enabled() or is_batched_gradient(grads[0]):
            return (*_backward_by_reference(ctx, query, key, value, attn_mask, grads[0]), *7 * (None,))
        scale, stretch = ctx.options["scale"], ctx.zeta - ctx.gamma
        tiles = Tiles.of(query, key, attn_mask, ctx.options["is_causal"], ctx.options["window"], ctx.block)
        dtype, groups = top_BHT1.dtype, key.shape[-3]
        dq_BHTD = torch.empty_like(query)
        dk_BGSD, dv_BGSD = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (key, value))
        for rows in tiles.rows():
            q_BHtD, dy_BHtD = query[..., rows, :].to(dtype) * scale, grads[0][..., rows, :].to(dtype)
            delta_BHt1 = stretch * (dy_BHtD * r_BHTD[..., rows, :]).sum(-1, keepdim=True)
            dq_BHtD = torch.zeros_like(q_BHtD)
            scores = _Scores(tiles, rows, q_BHtD, key)
            weights = _Softmax(scores, top_BHT1[..., rows, :], total_BHT1[..., rows, :])
            for cols in tiles.cols(rows):
                k_BHsD, v_BHsD = (_heads(x[..., cols, :], query, dtype) for x in (key, value))
                p_BHts = weights.tile(cols)
                stretched_BHts = p_BHts * stretch + ctx.gamma
                free_BHts = (stretched_BHts >= 0.0) & (stretched_BHts <= 1.0)
                dv_BHsD = stretched_BHts.clamp_(0.0, 1.0).transpose(-1, -2) @ dy_BHtD
                ds_BHts = (dy_BHtD @ v_BHsD.transpose(-1, -2)).mul_(stretch).masked_fill_(~free_BHts, 0.0)
                ds_BHts = ds_BHts.sub_(delta_BHt1).mul_(p_BHts)
                dq_BHtD += ds_BHts @ k_BHsD
                dk_BGSD[..., cols, :] += fold_kv_heads(ds_BHts.transpose(-1, -2) @ q_BHtD, groups)
                dv_BGSD[..., cols, :] += fold_kv_heads(dv_BHsD, groups)
            dq_BHTD[..., rows, :] = dq_BHtD * scale
        return dq_BHTD, dk_BGSD.to(key.dtype), dv_BGSD.to(value.dtype), *7 * (None,)


def _heads(x_BGsD: Tensor, query: Tensor, dtype: torch.dtype) -> Tensor:
    return masks.expand_kv_heads(x_BGsD.to(dtype), query.shape[-3])


@dataclass(frozen=True)
class _Scores:
    """A block of queries (…, H, t, D), scaled and wide, against the keys."""

    tiles: Tiles
    rows: slice
    query: Tensor
    key: Tensor

    def tile(self, cols: slice) -> Tensor:
        """Scores (…, H, t, s), -inf where a pair does not exist."""
        mask = self.tiles.mask(self.rows, cols)
        scores = self.tiles.scores(self.query, self.key[..., cols, :].to(self.query.dtype), mask)
        return scores if mask.allowed is None else scores.masked_fill_(~mask.allowed, -_INF)

    def top_and_total(self) -> tuple[Tensor, Tensor]:
        """The first sweep, online; a query without any key gets 0 and 1, so that its weights are exp(-inf) / 1 = 0."""
        top = self.query.new_full((*self.query.shape[:-1], 1), -_INF)
        total = torch.zeros_like(top)
        for cols in self.tiles.cols(self.rows):
            scores = self.tile(cols)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            finite = higher.masked_fill(higher == -_INF, 0.0)
            total = total * (top - finite).exp_() + scores.sub_(finite).exp_().sum(-1, keepdim=True)
            top = higher
        nothing = top == -_INF
        return top.masked_fill_(nothing, 0.0), total.masked_fill_(nothing, 1.0)


@dataclass(frozen=True)
class _Softmax:
    """The normalised weights of a block of queries, before clipping."""

    scores: _Scores
    top: Tensor
    total: Tensor

    def tile(self, cols: slice) -> Tensor:
        """Weights (…, H, t, s)."""
        return self.scores.tile(cols).sub_(self.top).exp_().div_(self.total)


def _weighted_values(
    weights: _Softmax, value: Tensor, gamma: float, zeta: float, outputs_only: bool
) -> tuple[Tensor, Tensor]:
    """The second sweep: O = P̃ V and, for the backward pass, R = (M ⊙ P) V."""
    query, tiles = weights.scores.query, weights.scores.tiles
    y_BHtD = query.new_zeros(*query.shape[:-1], value.shape[-1])
    r_BHtD = torch.zeros_like(y_BHtD)
    for cols in tiles.cols(weights.scores.rows):
        v_BHsD = _heads(value[..., cols, :], query, query.dtype)
        p_BHts = weights.tile(cols)
        stretched_BHts = p_BHts * (zeta - gamma) + gamma
        if not outputs_only:
            clipped_BHts = (stretched_BHts < 0.0) | (stretched_BHts > 1.0)
            r_BHtD += p_BHts.masked_fill_(clipped_BHts, 0.0) @ v_BHsD
        y_BHtD += stretched_BHts.clamp_(0.0, 1.0) @ v_BHsD
    return y_BHtD, r_BHtD


def _backward_by_reference(
    ctx: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k and v in operations that can be differentiated and batched, by way of the reference."""

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return clipped_softmax_attention_reference(
            query, key, value, attn_mask, enable_gqa=True, gamma=ctx.gamma, zeta=ctx.zeta, **ctx.options
        )

    with masks.without_autocast(query):
        return differentiable_gradients(dense, (query, key, value), ctx.needs_input_grad[:3], grad)
