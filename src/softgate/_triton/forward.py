"""Forward kernels: one program per block of queries, one sweep over the keys (two where weights need a row sum)."""

from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.maps import clip_weights, exp_of_difference, power_of, probabilities, softplus
from softgate._triton.tiles import key_range, key_tile, line_of, load, product, store

#: A row whose largest u is not above this is tied up to the rounding of float32.
TIE = tl.constexpr(16 * 2.0**-23)


@triton.jit
def online(s, allowed, top, PRODUCT: tl.constexpr):
    """Softmax numerators of a tile, the new maximum, and the factor by which what was summed so far shrinks."""
    s = tl.where(allowed, s, float("-inf"))
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    return exp_of_difference(s, safe[:, None], PRODUCT), new, exp_of_difference(top, safe, PRODUCT)


@triton.jit
def first_sweep(
    q, rows, keys, factor, line, sizes, loops,
    MAP: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr, ALIBI: tl.constexpr, FACTORS: tl.constexpr,
    FIRST: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Row sums before the weights are formed: maximum and sum of exp(scores - maximum), or of f = softplus(scores)."""
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for part in tl.static_range(FIRST, 3):
        for first_col in range(loops[2 * part], loops[2 * part + 1], BLOCK_N):
            _, _, _, s, allowed = key_tile(
                q, keys, rows, first_col, factor, line, sizes, part != 1, MASK, BIAS, ALIBI, FACTORS, PRODUCT,
                WIDTH_D, BLOCK_N,
            )  # fmt: skip
            if MAP == 2:
                e, top, shrink = online(s, allowed, top, PRODUCT)
                total = total * shrink + tl.sum(e, 1)
            else:
                f = tl.where(allowed, softplus(s), 0.0)
                total += tl.sum(f, 1)
                top = tl.maximum(top, tl.max(f, 1))
    return top, total


@triton.jit
def tile_weights(
    s, allowed, level, form, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr, PRODUCT: tl.constexpr
):
    """Weights of a tile, those of softplus not yet divided by their sum; softmax is not among them."""
    if MAP == 1:
        w = tl.sigmoid(s)
    elif MAP == 2:
        w = clip_weights(probabilities(s, allowed, level[:, None], PRODUCT), gamma, zeta)
    elif MAP == 3:
        w = softplus(s)
    else:
        slope, offset, tied = form
        f = tl.where(allowed, softplus(s), 0.0)
        t = tl.maximum(slope[:, None] * f - offset[:, None], 0.0)
        w = power_of(t, power, POWER) + tied[:, None] * f
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
def keep_statistics(base, rows, T, stride, level, count, level_u, form, inv_weight, power, MAP: tl.constexpr):
    """Store what backward needs to know of each row, in the order of :data:`softgate._triton.maps.ROWS`."""
    inside = rows < T
    if MAP == 0 or MAP == 2:
        tl.store(base + rows, level, mask=inside)
    elif MAP == 3:
        tl.store(base + rows, inv_weight, mask=inside)
    elif MAP == 4:
        slope, offset, tied = form
        untied = (1.0 - tied) * inv_weight
        tl.store(base + rows, slope, mask=inside)
        tl.store(base + stride + rows, offset, mask=inside)
        tl.store(base + 2 * stride + rows, untied, mask=inside)
        tl.store(base + 3 * stride + rows, power * slope * untied, mask=inside)
        tl.store(base + 4 * stride + rows, tied * inv_weight, mask=inside)
        tl.store(base + 6 * stride + rows, level_u * reciprocal(count), mask=inside)


@triton.jit
def reweighting(count_ptr, offset_ptr, rows, T, top, inv_sum):
    """LSSAR: number of keys, level o, and what makes t and the weights of f: a, b, and 1 in a row of ties, else 0."""
    count = tl.load(count_ptr + rows, mask=rows < T, other=0.0)
    offset = tl.load(offset_ptr + rows, mask=rows < T, other=0.0)
    largest = count * top * inv_sum - offset
    inv_max = reciprocal(tl.where(largest > TIE, largest, 0.0))
    return count, offset, (count * inv_sum * inv_max, offset * inv_max, tl.where(inv_max > 0.0, 0.0, 1.0))


@triton.jit
def gated(acc, gate_base, rows, sgt, sgd, T, DV, GATE: tl.constexpr, WIDTH_V: tl.constexpr):
    """Outputs times the sigmoid of their gate, which is one number per row (GATE 1) or per feature (2)."""
    features = tl.arange(0, WIDTH_V) if GATE == 2 else tl.zeros([WIDTH_V], tl.int32)
    gate = load(gate_base, rows, sgt, features, sgd, T, DV)
    return acc * tl.sigmoid(gate.to(tl.float32))


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, out_ptr, gate_ptr, mask_ptr, bias_ptr, slope_ptr, count_ptr, offset_ptr, row_ptr, col_ptr,
    stats_ptr, sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sob, soh, sot, sod,
    sgb, sgh, sgt, sgd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, MASK: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, FACTORS: tl.constexpr, LEFT_EDGE: tl.constexpr, RIGHT_EDGE: tl.constexpr,
    PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs of BLOCK_M queries of one head, and the row statistics that backward needs."""
    # From the last rows on: under causality they see the most keys, and what takes longest should start first.
    first_row, batch_head = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M, tl.program_id(1).to(tl.int64)
    b, h = batch_head // H, batch_head % H
    group, per_row = h // (H // G), batch_head * T
    FIRST: tl.constexpr = 0 if LEFT_EDGE else 1
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    sizes = (T, S, D, DV, LEFT, RIGHT)
    keys = (k_ptr + b * skb + group * skh, sks, skd, col_ptr + (b * G + group) * S)
    v_base = v_ptr + b * svb + group * svh
    line = line_of(bias_ptr, slope_ptr, mask_ptr, (smb, smh, smt, sms), b, h, BIAS, ALIBI)
    loops = key_range(first_row, sizes, BLOCK_M, BLOCK_N)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    factor = tl.load(row_ptr + per_row + rows, mask=rows < T, other=0.0) if FACTORS else scale

    none = tl.zeros([BLOCK_M], tl.float32)
    top, total, count, level_u, form = none + float("-inf"), none, none, none, (none, none, none)
    if MAP == 2 or MAP == 4:
        top, total = first_sweep(
            q, rows, keys, factor, line, sizes, loops, MAP, MASK, BIAS, ALIBI, FACTORS, FIRST, PRODUCT, WIDTH_D,
            BLOCK_M, BLOCK_N,
        )  # fmt: skip
    level, inv_sum = log_sum(top, total), reciprocal(total)
    if MAP == 4:
        count, level_u, form = reweighting(count_ptr + per_row, offset_ptr + per_row, rows, T, top, inv_sum)

    weight_sum, acc = none, tl.zeros([BLOCK_M, WIDTH_V], tl.float32)
    for part in tl.static_range(FIRST, 3):
        for first_col in range(loops[2 * part], loops[2 * part + 1], BLOCK_N):
            _, cols, _, s, allowed = key_tile(
                q, keys, rows, first_col, factor, line, sizes, part != 1, MASK, BIAS, ALIBI, FACTORS, PRODUCT,
                WIDTH_D, BLOCK_N,
            )  # fmt: skip
            if MAP == 0:
                w, top, shrink = online(s, allowed, top, PRODUCT)
                weight_sum, acc = weight_sum * shrink, acc * shrink[:, None]
            else:
                w = tile_weights(s, allowed, level, form, gamma, zeta, power, MAP, POWER, PRODUCT)
            if MAP != 1 and MAP != 2:
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
    keep_statistics(stats_ptr + per_row, rows, T, stats_stride, level, count, level_u, form, inv_weight, power, MAP)
    store(out_ptr + b * sob + h * soh, rows, sot, out_features, sod, T, DV, acc)
