"""Backward kernels: row sums where a map needs them, then queries, then keys and values.

Weights are computed anew per tile. Queries and keys have a kernel each, so that nothing is added atomically and the
result is the same in every run. The kernel of the keys has them in the rows of its tiles: weights and gradients of
scores are then left operands of its products as they come out of the scores, without being transposed.

With FACTORS, gradients of scores enter their products in two parts of 16 bits: most of what they give may lie along the
vectors, whose lengths do not count, and is taken out again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.maps import reweighted_sums, row_statistics, row_term, score_gradient, weights
from softgate._triton.tiles import (
    key_range,
    key_tile,
    line_of,
    load,
    pair_scores,
    product,
    query_range,
    rounded_product,
    store,
)


@triton.jit
def columns(stats):
    """Statistics of rows as they broadcast against tiles with the queries in their rows."""
    a, b, c, d, e, f, g = stats
    return a[:, None], b[:, None], c[:, None], d[:, None], e[:, None], f[:, None], g[:, None]


@triton.jit
def transposed(stats):
    """The same for tiles with the queries in their columns."""
    a, b, c, d, e, f, g = stats
    return a[None, :], b[None, :], c[None, :], d[None, :], e[None, :], f[None, :], g[None, :]


@triton.jit
def row_sums(
    q_ptr, k_ptr, v_ptr, dout_ptr, mask_ptr, bias_ptr, slope_ptr, row_ptr, col_ptr, stats_ptr, sums_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sdb, sdh, sdt, sdd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, FACTORS: tl.constexpr, LEFT_EDGE: tl.constexpr, RIGHT_EDGE: tl.constexpr,
    PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The term of :func:`softgate._triton.maps.row_term` summed over each row; for LSSAR with FACTORS Δ and E."""
    first_row, batch_head = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M, tl.program_id(1)
    b, h = (batch_head // H).to(tl.int64), (batch_head % H).to(tl.int64)
    group = h // (H // G)
    FIRST: tl.constexpr = 0 if LEFT_EDGE else 1
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    sizes = (T, S, D, DV, LEFT, RIGHT)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    dout = load(dout_ptr + b * sdb + h * sdh, rows, sdt, out_features, sdd, T, DV)
    keys = (k_ptr + b * skb + group * skh, sks, skd, col_ptr + (b * G + group) * S)
    v_base, row_base = v_ptr + b * svb + group * svh, batch_head.to(tl.int64) * T
    stats = columns(row_statistics(stats_ptr + row_base, rows, T, stats_stride, COUNT))
    line = line_of(bias_ptr, slope_ptr, mask_ptr, (smb, smh, smt, sms), b, h, BIAS, ALIBI)
    factor = tl.load(row_ptr + row_base + rows, mask=rows < T, other=0.0) if FACTORS else scale
    loops = key_range(first_row, sizes, BLOCK_M, BLOCK_N)
    total = tl.zeros([BLOCK_M], tl.float32)
    delta, slopes = total, total
    for part in tl.static_range(FIRST, 3):
        for first_col in range(loops[2 * part], loops[2 * part + 1], BLOCK_N):
            _, cols, _, s, allowed = key_tile(
                q, keys, rows, first_col, factor, line, sizes, part != 1, MASK, BIAS, ALIBI, FACTORS, PRODUCT,
                WIDTH_D, BLOCK_N,
            )  # fmt: skip
            v = load(v_base, cols, svs, out_features, svd, S, DV)
            dweights = product(dout, tl.trans(v), PRODUCT)
            if FACTORS:
                of_weights, of_slopes, slope = reweighted_sums(s, allowed, dweights, stats, power, POWER, PRODUCT)
                delta += of_weights
                total += of_slopes
                slopes += slope
            else:
                total += row_term(s, allowed, dweights, stats, gamma, zeta, power, MAP, POWER, PRODUCT)
    if FACTORS:
        level = tl.load(stats_ptr + 6 * stats_stride + row_base + rows, mask=rows < T, other=0.0)
        total = level * (total - delta * slopes)
        tl.store(sums_ptr + stats_stride + row_base + rows, delta, mask=rows < T)
    tl.store(sums_ptr + row_base + rows, total, mask=rows < T)


@triton.jit
def queries(
    q_ptr, k_ptr, v_ptr, dout_ptr, mask_ptr, bias_ptr, slope_ptr, row_ptr, col_ptr, stats_ptr, dq_ptr, dbias_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sdb, sdh, sdt, sdd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, FACTORS: tl.constexpr, LEFT_EDGE: tl.constexpr, RIGHT_EDGE: tl.constexpr,
    PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DBIAS: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M queries (contiguous (B, H, T, D)), and their share of the gradient of the head's bias."""
    first_row, batch_head = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M, tl.program_id(1)
    b, h = (batch_head // H).to(tl.int64), (batch_head % H).to(tl.int64)
    group = h // (H // G)
    FIRST: tl.constexpr = 0 if LEFT_EDGE else 1
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    sizes = (T, S, D, DV, LEFT, RIGHT)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    dout = load(dout_ptr + b * sdb + h * sdh, rows, sdt, out_features, sdd, T, DV)
    keys = (k_ptr + b * skb + group * skh, sks, skd, col_ptr + (b * G + group) * S)
    v_base, row_base = v_ptr + b * svb + group * svh, batch_head.to(tl.int64) * T
    stats = columns(row_statistics(stats_ptr + row_base, rows, T, stats_stride, COUNT))
    line = line_of(bias_ptr, slope_ptr, mask_ptr, (smb, smh, smt, sms), b, h, BIAS, ALIBI)
    factor = tl.load(row_ptr + row_base + rows, mask=rows < T, other=0.0) if FACTORS else scale
    loops = key_range(first_row, sizes, BLOCK_M, BLOCK_N)
    dq = tl.zeros([BLOCK_M, WIDTH_D], tl.float32)
    dbias = tl.zeros([BLOCK_M], tl.float32)
    for part in tl.static_range(FIRST, 3):
        for first_col in range(loops[2 * part], loops[2 * part + 1], BLOCK_N):
            k, cols, by_col, s, allowed = key_tile(
                q, keys, rows, first_col, factor, line, sizes, part != 1, MASK, BIAS, ALIBI, FACTORS, PRODUCT,
                WIDTH_D, BLOCK_N,
            )  # fmt: skip
            v = load(v_base, cols, svs, out_features, svd, S, DV)
            dweights = product(dout, tl.trans(v), PRODUCT)
            ds = score_gradient(s, allowed, dweights, stats, gamma, zeta, power, MAP, POWER, PRODUCT)
            if DBIAS:
                dbias += tl.sum(ds, 1)
            if FACTORS:
                ds = ds * by_col[None, :]
            dq += rounded_product(ds, k, FACTORS, PRODUCT)
    dq = dq * (factor[:, None] if FACTORS else scale)
    if DBIAS:
        tl.store(dbias_ptr + row_base + rows, dbias, mask=rows < T)
    store(dq_ptr + row_base * D, rows, D, features, 1, T, D, dq)


@triton.jit
def keys_and_values(
    q_ptr, k_ptr, v_ptr, dout_ptr, mask_ptr, bias_ptr, slope_ptr, row_ptr, col_ptr, stats_ptr, dk_ptr, dv_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sdb, sdh, sdt, sdd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, FACTORS: tl.constexpr, LEFT_EDGE: tl.constexpr, RIGHT_EDGE: tl.constexpr,
    PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N keys and values (contiguous (B, G, S, ·)), summed over the group's query heads."""
    first_col, batch_group = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    b, group = (batch_group // G).to(tl.int64), (batch_group % G).to(tl.int64)
    FIRST: tl.constexpr = 0 if RIGHT_EDGE else 1
    cols, features, out_features = first_col + tl.arange(0, BLOCK_N), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    sizes = (T, S, D, DV, LEFT, RIGHT)
    base = batch_group.to(tl.int64) * S
    k = load(k_ptr + b * skb + group * skh, cols, sks, features, skd, S, D)
    v = load(v_ptr + b * svb + group * svh, cols, svs, out_features, svd, S, DV)
    by_col = tl.load(col_ptr + base + cols, mask=cols < S, other=0.0) if FACTORS else scale
    loops = query_range(first_col, sizes, BLOCK_M, BLOCK_N)
    dk = tl.zeros([BLOCK_N, WIDTH_D], tl.float32)
    dv = tl.zeros([BLOCK_N, WIDTH_V], tl.float32)
    for member in range(0, H // G):
        h = group * (H // G) + member
        row_base = (b * H + h) * T
        line = line_of(bias_ptr, slope_ptr, mask_ptr, (smb, smh, smt, sms), b, h, BIAS, ALIBI)
        for part in tl.static_range(FIRST, 3):
            for first_row in range(loops[2 * part], loops[2 * part + 1], BLOCK_M):
                rows = first_row + tl.arange(0, BLOCK_M)
                q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
                dout = load(dout_ptr + b * sdb + h * sdh, rows, sdt, out_features, sdd, T, DV)
                stats = transposed(row_statistics(stats_ptr + row_base, rows, T, stats_stride, COUNT))
                products, factor = product(k, tl.trans(q), PRODUCT), scale
                if FACTORS:
                    by_row = tl.load(row_ptr + row_base + rows, mask=rows < T, other=0.0)
                    products, factor = products * by_col[:, None], by_row[None, :]
                s, allowed = pair_scores(
                    products, rows[None, :], cols[:, None], factor, line, sizes, part != 1, MASK, BIAS, ALIBI
                )
                w = weights(s, allowed, stats, gamma, zeta, power, MAP, POWER, PRODUCT)
                dv += product(w.to(dout.dtype), dout, PRODUCT)
                dweights = product(v, tl.trans(dout), PRODUCT)
                ds = score_gradient(s, allowed, dweights, stats, gamma, zeta, power, MAP, POWER, PRODUCT)
                if FACTORS:
                    ds = ds * by_row[None, :]
                dk += rounded_product(ds, q, FACTORS, PRODUCT)
    dk = dk * (by_col[:, None] if FACTORS else scale)
    store(dk_ptr + base * D, cols, D, features, 1, S, D, dk)
    store(dv_ptr + base * DV, cols, DV, out_features, 1, S, DV, dv)
