"""Forward kernels: one program per block of queries, one sweep over the keys (two where weights need a row sum)."""

from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.maps import clip_weights, power_of, softplus
from softgate._triton.tiles import key_range, load, pair_scores, product, store

#: A row whose largest u is not above this is tied up to the rounding of float32.
TIE = tl.constexpr(16 * 2.0**-23)


@triton.jit
def online(s, allowed, top):
    """Softmax numerators of a tile, the new maximum, and the factor by which what was summed so far shrinks."""
    s = tl.where(allowed, s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    return tl.exp(s - safe[:, None]), new, tl.exp(top - safe)


@triton.jit
def first_sweep(
    q, k_base, mask_base, rows, start, end, sks, skd, smt, sms, scale, shift, slope, T, S, D, LEFT, RIGHT,
    MAP: tl.constexpr, MASK: tl.constexpr, ALIBI: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Row sums before the weights are formed: maximum and sum of exp(scores - maximum), or of f = softplus(scores)."""
    features = tl.arange(0, WIDTH_D)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first_col in range(start, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load(k_base, cols, sks, features, skd, S, D)
        s, allowed = pair_scores(
            q, k, rows, cols, mask_base, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT, MASK, ALIBI, PRODUCT
        )
        if MAP == 2:
            e, top, shrink = online(s, allowed, top)
            total = total * shrink + tl.sum(e, 1)
        else:
            f = tl.where(allowed, softplus(s), 0.0)
            total += tl.sum(f, 1)
            top = tl.maximum(top, tl.max(f, 1))
    return top, total


@triton.jit
def tile_weights(
    s, allowed, level, inv_sum, count, offset, inv_max, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr
):
    """Weights of a tile, those of softplus not yet divided by their sum; softmax is not among them."""
    if MAP == 1:
        w = tl.sigmoid(s)
    elif MAP == 2:
        w = clip_weights(tl.exp(tl.where(allowed, s, float("-inf")) - level[:, None]), gamma, zeta)
    else:
        w = tl.where(allowed, softplus(s), 0.0)
        if MAP == 4:
            t = tl.maximum(count[:, None] * w * inv_sum[:, None] - offset[:, None], 0.0) * inv_max[:, None]
            w = tl.where(inv_max[:, None] > 0.0, power_of(t, power, POWER), w)
    return tl.where(allowed, w, 0.0)


@triton.jit
def reciprocal(x):
    """1 / x where x is positive, else 0."""
    positive = x > 0.0
    return tl.where(positive, 1.0 / tl.where(positive, x, 1.0), 0.0)


@triton.jit
def log_sum(top, total):
    """Log-sum-exp from maximum and sum; 0 for a row without keys, whose weights are 0 at any level."""
    some = total != 0.0
    return tl.where(some, tl.where(some, top, 0.0) + tl.log(tl.where(some, total, 1.0)), 0.0)


@triton.jit
def keep_statistics(base, rows, T, stride, level, inv_sum, count, offset, inv_max, inv_weight, MAP: tl.constexpr):
    """Store what backward needs to know of each row, in the order of :data:`softgate._triton.maps.ROWS`."""
    inside = rows < T
    if MAP == 0 or MAP == 2:
        tl.store(base + rows, level, mask=inside)
    elif MAP == 3:
        tl.store(base + rows, inv_weight, mask=inside)
    elif MAP == 4:
        tl.store(base + rows, inv_sum, mask=inside)
        tl.store(base + stride + rows, count, mask=inside)
        tl.store(base + 2 * stride + rows, offset, mask=inside)
        tl.store(base + 3 * stride + rows, inv_max, mask=inside)
        tl.store(base + 4 * stride + rows, inv_weight, mask=inside)


@triton.jit
def reweighting(count_ptr, offset_ptr, rows, T, top, inv_sum):
    """LSSAR: number of keys, level and 1 / largest excess of each row (0 for ties)."""
    count = tl.load(count_ptr + rows, mask=rows < T, other=0.0)
    offset = tl.load(offset_ptr + rows, mask=rows < T, other=0.0)
    largest = count * top * inv_sum - offset
    return count, offset, reciprocal(tl.where(largest > TIE, largest, 0.0))


@triton.jit
def gated(acc, gate_base, rows, sgt, sgd, T, DV, GATE: tl.constexpr, WIDTH_V: tl.constexpr):
    """Outputs times the sigmoid of their gate, which is one number per row (GATE 1) or per feature (2)."""
    features = tl.arange(0, WIDTH_V) if GATE == 2 else tl.zeros([WIDTH_V], tl.int32)
    gate = load(gate_base, rows, sgt, features, sgd, T, DV)
    return acc * tl.sigmoid(gate.to(tl.float32))


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, out_ptr, gate_ptr, mask_ptr, bias_ptr, slope_ptr, count_ptr, offset_ptr, stats_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sob, soh, sot, sod,
    sgb, sgh, sgt, sgd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, MASK: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs of BLOCK_M queries of one head, and the row statistics that backward needs."""
    first_row, batch_head = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64)
    b, h = batch_head // H, batch_head % H
    group, per_row = h // (H // G), batch_head * T
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    k_base, v_base, mask_base = (
        k_ptr + b * skb + group * skh,
        v_ptr + b * svb + group * svh,
        mask_ptr + b * smb + h * smh,
    )
    shift = tl.load(bias_ptr + h) if BIAS else 0.0
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    start, end = key_range(first_row, T, S, LEFT, RIGHT, BLOCK_M, BLOCK_N)

    none = tl.zeros([BLOCK_M], tl.float32)
    top, total, count, offset, inv_max = none + float("-inf"), none, none, none, none
    if MAP == 2 or MAP == 4:
        top, total = first_sweep(
            q, k_base, mask_base, rows, start, end, sks, skd, smt, sms, scale, shift, slope, T, S, D, LEFT, RIGHT,
            MAP, MASK, ALIBI, PRODUCT, WIDTH_D, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    level, inv_sum = log_sum(top, total), reciprocal(total)
    if MAP == 4:
        count, offset, inv_max = reweighting(count_ptr + per_row, offset_ptr + per_row, rows, T, top, inv_sum)

    weight_sum = none
    acc = tl.zeros([BLOCK_M, WIDTH_V], tl.float32)
    for first_col in range(start, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load(k_base, cols, sks, features, skd, S, D)
        s, allowed = pair_scores(
            q, k, rows, cols, mask_base, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT, MASK, ALIBI, PRODUCT
        )
        if MAP == 0:
            w, top, shrink = online(s, allowed, top)
            weight_sum, acc = weight_sum * shrink, acc * shrink[:, None]
        else:
            w = tile_weights(s, allowed, level, inv_sum, count, offset, inv_max, gamma, zeta, power, MAP, POWER)
        weight_sum += tl.sum(w, 1)
        v = load(v_base, cols, svs, out_features, svd, S, DV)
        acc += product(w.to(v.dtype), v, PRODUCT)

    inv_weight = reciprocal(weight_sum)
    if MAP != 1 and MAP != 2:
        acc = acc * inv_weight[:, None]
    if MAP == 0:  # a NaN in a row makes its sum NaN, which must not count as "no keys"
        acc, level = tl.where((weight_sum != weight_sum)[:, None], float("nan"), acc), log_sum(top, weight_sum)
    if GATE != 0:
        acc = gated(acc, gate_ptr + b * sgb + h * sgh, rows, sgt, sgd, T, DV, GATE, WIDTH_V)
    keep_statistics(stats_ptr + per_row, rows, T, stats_stride, level, inv_sum, count, offset, inv_max, inv_weight, MAP)
    store(out_ptr + b * sob + h * soh, rows, sot, out_features, sod, T, DV, acc)
