"""LSSA and LSSAR in O(T·d) memory, in plain torch: the score matrix is walked in tiles, forward and backward.

Forward, per block of queries, with f = φ(z) and o the level of the row. The first sweep needs no values:

    l = Σ f,  m = max f,  P = N·m/l - o  (the largest u)

The second: t = relu(N·f/l - o)/P in [0, 1], w = t^p, r = Σ w, O = Σ w v / r. Tied rows (P = 0 up to rounding) and LSSA
have w = f and r = l.

Backward, with G = dO vᵀ and Δ = rowsum(dO ⊙ O); P is a constant that cancels, so no gradient passes through it:

    du = p t^(p-1)/(r P) · (G - Δ),   Σ du = p (dO·Y - Δ y)  with  Y = Σ t^(p-1) v/(r P),  y = Σ t^(p-1)/(r P)
    df = (N du - o Σ du)/l            (Σ du·u vanishes, since Σ w (G - Δ) = 0)
    dz = df · φ'(z)                   LSSA and tied rows: df = (G - Δ)/l

so df is not 0 for keys with u = 0. The normalisation of queries and keys and the factor c are left to autograd: they
are O(T·d).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softgate._math import masks
from softgate._math.double_backward import differentiable_gradients
from softgate._math.tiles import Tiles, fold_kv_heads, worthwhile
from softgate.attention.softplus.reference import (
    POSITIVE_MAPS,
    LengthScale,
    Phi,
    first_stage,
    in_one_dtype,
    level,
    score_factor,
    second_stage,
    tie_level,
    unit_vectors,
)
from softgate.dispatch import mode


class _Rule(NamedTuple):
    """How scores become weights."""

    phi: Phi
    power: float | None
    offset: float
    offset_min_keys: int


class _Rows(NamedTuple):
    """What the second stage needs to know of a block of queries, each (…, H, t, 1).

    Attributes:
        slope: N/(l P), so that t = relu(slope·f - shift).
        shift: o/P.
        tied: rows that keep their first-stage weights; None if there are none.
    """

    slope: Tensor
    shift: Tensor
    tied: Tensor | None


def refuses(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *positional: Any,
    phi: Phi = "softplus",
    backend: str = "auto",
    **options: Any,
) -> str | None:
    """Say why this call cannot run here, None if it can."""
    if backend not in ("auto", "tiled"):
        return f"backend={backend!r} was asked for"
    if dropout_p > 0.0:
        return "it has no dropout"
    if phi == "exp":
        return "phi='exp' needs the largest score of a row"
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        return "it gives no gradient for attn_mask"
    if backend == "auto" and mode() != "tiled" and not worthwhile(query, key):
        return "so small a score matrix costs less whole"
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
    reweight_power: float | None = 15,
    offset: float = 1.0,
    offset_min_keys: int = 3,
    length_scale: LengthScale = "log",
    normalize_qk: bool = True,
    phi: Phi = "softplus",
    window: int | None = None,
    backend: str = "auto",
    block: int | None = None,
) -> Tensor:
    """Arguments and result of :func:`softgate.attention.softplus_attention`; ``block`` rows and columns per tile."""
    query, key, value, result_dtype = in_one_dtype(query, key, value)
    with masks.without_autocast(query):
        dtype = masks.accumulation_dtype(query.dtype)
        tiles = Tiles.of(query, key, attn_mask, is_causal, window, block)
        q_BHTD, k_BGSD = query.to(dtype), key.to(dtype)
        if normalize_qk:
            q_BHTD, k_BGSD = unit_vectors(q_BHTD), unit_vectors(k_BGSD)
        count = visible_keys_in_tiles(tiles, q_BHTD)
        q_BHTD = q_BHTD * score_factor(count, query.shape[-1], scale, length_scale, normalize_qk)
        rule = _Rule(phi, reweight_power, offset, offset_min_keys)
        return _Tiled.apply(q_BHTD, k_BGSD, value, count, tiles, rule).to(result_dtype)


@torch.no_grad()
def visible_keys_in_tiles(tiles: Tiles, like: Tensor) -> Tensor:
    """N, (…, T, 1), counted tile by tile, or worked out where no mask but causality and a window leaves keys out."""
    if tiles.attn_mask is None:
        position = torch.arange(tiles.queries, device=like.device)[:, None] + (tiles.keys - tiles.queries)
        end = tiles.keys if tiles.right is None else (position + (tiles.right + 1)).clamp(0, tiles.keys)
        first = 0 if tiles.left is None else (position - tiles.left).clamp(0, tiles.keys)
        return torch.zeros_like(position, dtype=like.dtype) + (end - first)
    lead = () if tiles.attn_mask is None else tiles.attn_mask.shape[:-2]
    count = like.new_zeros(*lead, tiles.queries, 1)
    for rows in tiles.rows():
        for cols in tiles.cols(rows):
            allowed, width = tiles.mask(rows, cols).allowed, cols.stop - cols.start
            seen = width if allowed is None else allowed.expand(*allowed.shape[:-1], width).sum(-1, keepdim=True)
            count[..., rows, :] += seen
    return count


class _Tiled(torch.autograd.Function):
    """O from normalised and scaled queries, normalised keys, values and N; out in the dtype of the queries."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, count: Tensor, tiles: Tiles, rule: _Rule
    ) -> Tensor:
        out = query.new_zeros(*query.shape[:-1], value.shape[-1])
        total, largest, norm, slopes = query.new_zeros(4, *query.shape[:-1], 1)
        steep = torch.zeros_like(out) if rule.power is not None and any(ctx.needs_input_grad[:3]) else None
        for rows in tiles.rows():
            known = None
            if rule.power is not None:
                _first_sweep(query, key, tiles, rows, rule, total[..., rows, :], largest[..., rows, :])
                known = _second_stage(total[..., rows, :], largest[..., rows, :], count[..., rows, :], rule)
            for cols in tiles.cols(rows):
                _, f_BHts, _ = _positive(query, key, tiles, rows, cols, rule)
                base, core = _numerators(f_BHts, known, rule)
                v_BHsD = _widened(value[..., cols, :], query)
                weights = base if core is None else base * core
                norm[..., rows, :] += weights.sum(-1, keepdim=True)
                out[..., rows, :] += weights @ v_BHsD
                if steep is not None and core is not None:
                    slopes[..., rows, :] += core.sum(-1, keepdim=True)
                    steep[..., rows, :] += core @ v_BHsD
        norm.masked_fill_(norm == 0.0, 1.0)
        out /= norm
        ctx.save_for_backward(query, key, value, count, out, total, largest, norm, slopes, steep)
        ctx.tiles, ctx.rule = tiles, rule
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, count, out, total, largest, norm, slopes, steep = ctx.saved_tensors
        tiles, rule = ctx.tiles, ctx.rule
        if torch.is_grad_enabled():  # create_graph=True: these loops have no derivative of their own
            return (*_differentiable_backward(ctx, query, key, value, count, grads[0]), None, None, None)
        dquery, dkey, dvalue = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value, dtype=key.dtype)
        for rows in tiles.rows():
            q_BHtD, do_BHtD, r_BHt1 = query[..., rows, :], grads[0][..., rows, :], norm[..., rows, :]
            delta_BHt1 = (do_BHtD * out[..., rows, :]).sum(-1, keepdim=True)
            known, gain, loss = None, 1.0 / r_BHt1, None
            if rule.power is not None:
                l_BHt1 = total[..., rows, :]
                known = _second_stage(l_BHt1, largest[..., rows, :], count[..., rows, :], rule)
                around = (do_BHtD * steep[..., rows, :]).sum(-1, keepdim=True) - delta_BHt1 * slopes[..., rows, :]
                gain, loss = _through_second_stage(known, rule.power, gain, around, l_BHt1)
            for cols in tiles.cols(rows):
                z_BHts, f_BHts, allowed = _positive(query, key, tiles, rows, cols, rule)
                base, core = _numerators(f_BHts, known, rule)
                weights = base if core is None else base * core
                dvalue[..., cols, :] += fold_kv_heads(weights.mT @ (do_BHtD / r_BHt1), value.shape[-3])
                df_BHts = do_BHtD @ _widened(value[..., cols, :], query).mT - delta_BHt1
                df_BHts = (df_BHts if core is None else df_BHts.mul_(core)).mul_(gain)
                df_BHts = df_BHts if loss is None else df_BHts.sub_(loss)
                dz_BHts = masks.masked_weights(df_BHts.mul_(_slope_of(rule.phi, z_BHts, f_BHts)), allowed)
                dquery[..., rows, :] += dz_BHts @ _widened(key[..., cols, :], query)
                dkey[..., cols, :] += fold_kv_heads(dz_BHts.mT @ q_BHtD, key.shape[-3])
        return dquery, dkey, dvalue.to(value.dtype), None, None, None


def _widened(tile: Tensor, query: Tensor) -> Tensor:
    """A tile of keys or values for every query head, in the dtype of the computation."""
    return masks.expand_kv_heads(tile.to(query.dtype), query.shape[-3])


def _positive(
    query: Tensor, key: Tensor, tiles: Tiles, rows: slice, cols: slice, rule: _Rule
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A tile of scores z and of f = φ(z), which is 0 where not ``allowed``, and the tile of the mask."""
    mask = tiles.mask(rows, cols)
    scores = tiles.scores(query[..., rows, :], key[..., cols, :], mask)
    return scores, masks.masked_weights(POSITIVE_MAPS[rule.phi](scores), mask.allowed), mask.allowed


def _first_sweep(
    query: Tensor, key: Tensor, tiles: Tiles, rows: slice, rule: _Rule, total: Tensor, largest: Tensor
) -> None:
    """Add up l and find m for a block of queries, in place."""
    for cols in tiles.cols(rows):
        _, f_BHts, _ = _positive(query, key, tiles, rows, cols, rule)
        total += f_BHts.sum(-1, keepdim=True)
        torch.maximum(largest, f_BHts.amax(-1, keepdim=True), out=largest)


def _second_stage(total: Tensor, largest: Tensor, count: Tensor, rule: _Rule) -> _Rows:
    """The map f -> t of a block of queries."""
    subtracted = level(count, rule.offset, rule.offset_min_keys)
    share = count / total.masked_fill(total == 0.0, 1.0)
    peak = share * largest - subtracted
    tied = peak <= tie_level(total.dtype)
    peak = peak.masked_fill(tied, 1.0)
    return _Rows(share / peak, subtracted / peak, tied if bool(tied.any()) else None)


def _numerators(f: Tensor, known: _Rows | None, rule: _Rule) -> tuple[Tensor, Tensor | None]:
    """Two factors whose product are the weights before their normalisation: t and t^(p-1), or f and None (for 1)."""
    if known is None or rule.power is None:
        return f, None
    t = (f * known.slope).sub_(known.shift).relu_()
    core = _power(t, rule.power - 1)
    if known.tied is not None:
        t, core = torch.where(known.tied, f, t), core.masked_fill(known.tied, 1.0)
    return t, core


def _power(t: Tensor, exponent: float) -> Tensor:
    """``t ** exponent`` for t ≥ 0, by squaring where the exponent is a whole number; 0⁰ is 0, the slope of relu."""
    if exponent == 0:
        return (t > 0.0).to(t.dtype)
    if exponent != int(exponent):
        return t**exponent
    rest, result = int(exponent), None
    while True:
        if rest & 1:
            result = t if result is None else result * t
        rest >>= 1
        if not rest:
            assert result is not None
            return result
        t = t * t


def _through_second_stage(
    known: _Rows, power: float, per_norm: Tensor, around: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """The factor of t^(p-1)·(G - Δ) in df, and what is subtracted from it: o Σ du / l."""
    gain = per_norm * known.slope * power
    loss = around * known.shift * per_norm * power / total.masked_fill(total == 0.0, 1.0)
    if known.tied is None:
        return gain, loss
    return torch.where(known.tied, per_norm, gain), loss.masked_fill(known.tied, 0.0)


def _slope_of(phi: Phi, scores: Tensor, f: Tensor) -> Tensor:
    """φ'(z)."""
    if phi == "sigmoid":
        return f * (1.0 - f)
    return torch.sigmoid(scores) if phi == "softplus" else (scores > 0.0).to(scores.dtype)


def _differentiable_backward(
    ctx: Any, query: Tensor, key: Tensor, value: Tensor, count: Tensor, grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients as functions of query, key, value and ``grad``, by way of the dense form."""
    tiles, rule = ctx.tiles, ctx.rule

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = tiles.mask(slice(0, tiles.queries), slice(0, tiles.keys))
        weights = first_stage(tiles.scores(query, key, mask), mask.allowed, rule.phi)
        if rule.power is not None:
            weights = second_stage(weights, count, rule.power, rule.offset, rule.offset_min_keys)
        return weights @ _widened(value, query)

    return differentiable_gradients(dense, (query, key, value), ctx.needs_input_grad[:3], grad)
