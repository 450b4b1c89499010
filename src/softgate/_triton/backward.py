"""Backward kernels: row sums where a map needs them, then queries, then keys and values.

Weights are computed anew per tile. Queries and keys have a kernel each, so that nothing is added atomically and the
result is the same in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.maps import row_statistics, row_term, score_gradient, weights
from softgate._triton.tiles import key_range, load, pair_scores, product, query_range, store


@triton.jit
def row_sums(
    q_ptr, k_ptr, v_ptr, dout_ptr, mask_ptr, bias_ptr, slope_ptr, stats_ptr, sums_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sdb, sdh, sdt, sdd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The term of :func:`softgate._triton.maps.row_term` summed over each row."""
    first_row, batch_head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    b, h = (batch_head // H).to(tl.int64), (batch_head % H).to(tl.int64)
    group = h // (H // G)
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    dout = load(dout_ptr + b * sdb + h * sdh, rows, sdt, out_features, sdd, T, DV)
    k_base, v_base = k_ptr + b * skb + group * skh, v_ptr + b * svb + group * svh
    row_base = batch_head.to(tl.int64) * T
    stats = row_statistics(stats_ptr + row_base, rows, T, stats_stride, COUNT)
    shift = tl.load(bias_ptr + h) if BIAS else 0.0
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    start, end = key_range(first_row, T, S, LEFT, RIGHT, BLOCK_M, BLOCK_N)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first_col in range(start, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load(k_base, cols, sks, features, skd, S, D)
        v = load(v_base, cols, svs, out_features, svd, S, DV)
        s, allowed = pair_scores(
            q, k, rows, cols, mask_ptr + b * smb + h * smh, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT,
            MASK, ALIBI, PRODUCT,
        )  # fmt: skip
        total += row_term(s, allowed, product(dout, tl.trans(v), PRODUCT), stats, gamma, zeta, power, MAP, POWER)
    tl.store(sums_ptr + row_base + rows, total, mask=rows < T)


@triton.jit
def queries(
    q_ptr, k_ptr, v_ptr, dout_ptr, mask_ptr, bias_ptr, slope_ptr, stats_ptr, dq_ptr, dbias_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sdb, sdh, sdt, sdd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_M queries (contiguous (B, H, T, D)), and their share of the gradient of the head's bias."""
    first_row, batch_head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    b, h = (batch_head // H).to(tl.int64), (batch_head % H).to(tl.int64)
    group = h // (H // G)
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    dout = load(dout_ptr + b * sdb + h * sdh, rows, sdt, out_features, sdd, T, DV)
    k_base, v_base = k_ptr + b * skb + group * skh, v_ptr + b * svb + group * svh
    stats = row_statistics(stats_ptr + batch_head.to(tl.int64) * T, rows, T, stats_stride, COUNT)
    shift = tl.load(bias_ptr + h) if BIAS else 0.0
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    start, end = key_range(first_row, T, S, LEFT, RIGHT, BLOCK_M, BLOCK_N)
    dq = tl.zeros([BLOCK_M, WIDTH_D], tl.float32)
    dbias = tl.zeros([BLOCK_M], tl.float32)
    for first_col in range(start, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load(k_base, cols, sks, features, skd, S, D)
        v = load(v_base, cols, svs, out_features, svd, S, DV)
        s, allowed = pair_scores(
            q, k, rows, cols, mask_ptr + b * smb + h * smh, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT,
            MASK, ALIBI, PRODUCT,
        )  # fmt: skip
        dweights = product(dout, tl.trans(v), PRODUCT)
        ds = score_gradient(s, allowed, dweights, stats, gamma, zeta, power, MAP, POWER)
        dq += product(ds.to(k.dtype), k, PRODUCT)
        dbias += tl.sum(ds, 1)
    if BIAS:
        tl.store(dbias_ptr + batch_head.to(tl.int64) * T + rows, dbias, mask=rows < T)
    store(dq_ptr + batch_head.to(tl.int64) * T * D, rows, D, features, 1, T, D, dq * scale)


@triton.jit
def keys_and_values(
    q_ptr, k_ptr, v_ptr, dout_ptr, mask_ptr, bias_ptr, slope_ptr, stats_ptr, dk_ptr, dv_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sdb, sdh, sdt, sdd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, COUNT: tl.constexpr, MASK: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, PRODUCT: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N keys and values (contiguous (B, G, S, ·)), summed over the group's query heads."""
    first_col, batch_group = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    b, group = (batch_group // G).to(tl.int64), (batch_group % G).to(tl.int64)
    cols, features, out_features = first_col + tl.arange(0, BLOCK_N), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    k = load(k_ptr + b * skb + group * skh, cols, sks, features, skd, S, D)
    v = load(v_ptr + b * svb + group * svh, cols, svs, out_features, svd, S, DV)
    start, end = query_range(first_col, T, S, LEFT, RIGHT, BLOCK_M, BLOCK_N)
    dk = tl.zeros([BLOCK_N, WIDTH_D], tl.float32)
    dv = tl.zeros([BLOCK_N, WIDTH_V], tl.float32)
    for member in range(0, H // G):
        h = group * (H // G) + member
        shift = tl.load(bias_ptr + h) if BIAS else 0.0
        slope = tl.load(slope_ptr + h) if ALIBI else 0.0
        for first_row in range(start, end, BLOCK_M):
            rows = first_row + tl.arange(0, BLOCK_M)
            q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
            dout = load(dout_ptr + b * sdb + h * sdh, rows, sdt, out_features, sdd, T, DV)
            stats = row_statistics(stats_ptr + (b * H + h) * T, rows, T, stats_stride, COUNT)
            s, allowed = pair_scores(
                q, k, rows, cols, mask_ptr + b * smb + h * smh, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT,
                MASK, ALIBI, PRODUCT,
            )  # fmt: skip
            w = weights(s, allowed, stats, gamma, zeta, power, MAP, POWER)
            dv += product(tl.trans(w).to(dout.dtype), dout, PRODUCT)
            dweights = product(dout, tl.trans(v), PRODUCT)
            ds = score_gradient(s, allowed, dweights, stats, gamma, zeta, power, MAP, POWER)
            dk += product(tl.trans(ds).to(q.dtype), q, PRODUCT)
    base = batch_group.to(tl.int64) * S
    store(dk_ptr + base * D, cols, D, features, 1, S, D, dk * scale)
    store(dv_ptr + base * DV, cols, DV, out_features, 1, S, DV, dv)
