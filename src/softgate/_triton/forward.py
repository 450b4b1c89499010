"""Forward kernels: one program per block of queries, one sweep over the keys (two where weights need a row sum)."""

from __future__ import annotations

import triton
import triton.language as tl

from softgate._triton.maps import clip_weights, power_of, softplus
from softgate._triton.tiles import key_range, load, pair_scores, product, store

#: A row whose largest u is not above this is tied up to the rounding of float32.
TIE = tl.constexpr(16 * 2.0**-23)


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, out_ptr, gate_ptr, mask_ptr, bias_ptr, slope_ptr, count_ptr, offset_ptr, stats_ptr,
    sqb, sqh, sqt, sqd, skb, skh, sks, skd, svb, svh, svs, svd, sob, soh, sot, sod,
    sgb, sgh, sgt, sgd, smb, smh, smt, sms,
    scale, gamma, zeta, power, H, G, T, S, D, DV, LEFT, RIGHT, stats_stride,
    MAP: tl.constexpr, POWER: tl.constexpr, MASK: tl.constexpr, GATE: tl.constexpr, BIAS: tl.constexpr,
    ALIBI: tl.constexpr, UPCAST: tl.constexpr, WIDTH_D: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs of BLOCK_M queries of one head, and the row statistics that backward needs."""
    first_row, batch_head = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    b, h = (batch_head // H).to(tl.int64), (batch_head % H).to(tl.int64)
    group = h // (H // G)
    rows, features, out_features = first_row + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH_D), tl.arange(0, WIDTH_V)
    q = load(q_ptr + b * sqb + h * sqh, rows, sqt, features, sqd, T, D)
    k_base, v_base = k_ptr + b * skb + group * skh, v_ptr + b * svb + group * svh
    mask_base, stats = mask_ptr + b * smb + h * smh, stats_ptr + batch_head.to(tl.int64) * T
    shift = tl.load(bias_ptr + h) if BIAS else 0.0
    slope = tl.load(slope_ptr + h) if ALIBI else 0.0
    start, end = key_range(first_row, T, S, LEFT, RIGHT, BLOCK_M, BLOCK_N)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)  # running maximum of scores, or of f
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, WIDTH_V], tl.float32)
    if MAP == 2 or MAP == 4:  # first sweep: the row sum (and the maximum of f)
        for first_col in range(start, end, BLOCK_N):
            cols = first_col + tl.arange(0, BLOCK_N)
            k = load(k_base, cols, sks, features, skd, S, D)
            s, allowed = pair_scores(
                q, k, rows, cols, mask_base, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT, MASK, ALIBI, UPCAST
            )
            if MAP == 2:
                s = tl.where(allowed, s, float("-inf"))
                new = tl.maximum(top, tl.max(s, 1))
                safe = tl.where(new == float("-inf"), 0.0, new)
                total = total * tl.exp(top - safe) + tl.sum(tl.exp(s - safe[:, None]), 1)
                top = new
            else:
                f = tl.where(allowed, softplus(s), 0.0)
                total += tl.sum(f, 1)
                top = tl.maximum(top, tl.max(f, 1))
    level = top + tl.log(tl.where(total > 0.0, total, 1.0))  # log-sum-exp
    level = tl.where(level == float("-inf"), 0.0, level)  # a row without keys: its weights are 0 with any level
    inv_sum = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
    count = tl.zeros([BLOCK_M], tl.float32)
    offset = tl.zeros([BLOCK_M], tl.float32)
    inv_max = tl.zeros([BLOCK_M], tl.float32)
    if MAP == 4:
        count = tl.load(count_ptr + batch_head.to(tl.int64) * T + rows, mask=rows < T, other=0.0)
        offset = tl.load(offset_ptr + batch_head.to(tl.int64) * T + rows, mask=rows < T, other=0.0)
        largest = count * top * inv_sum - offset
        untied = largest > TIE
        inv_max = tl.where(untied, 1.0 / tl.where(untied, largest, 1.0), 0.0)

    weight_sum = tl.zeros([BLOCK_M], tl.float32)
    for first_col in range(start, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load(k_base, cols, sks, features, skd, S, D)
        s, allowed = pair_scores(
            q, k, rows, cols, mask_base, smt, sms, scale, shift, slope, T, S, LEFT, RIGHT, MASK, ALIBI, UPCAST
        )
        if MAP == 0:
            s = tl.where(allowed, s, float("-inf"))
            new = tl.maximum(top, tl.max(s, 1))
            safe = tl.where(new == float("-inf"), 0.0, new)
            w = tl.exp(s - safe[:, None])
            shrink = tl.exp(top - safe)
            weight_sum = weight_sum * shrink + tl.sum(w, 1)
            acc = acc * shrink[:, None]
            top = new
        elif MAP == 1:
            w = tl.where(allowed, tl.sigmoid(s), 0.0)
        elif MAP == 2:
            w = clip_weights(tl.exp(tl.where(allowed, s, float("-inf")) - level[:, None]), gamma, zeta)
            w = tl.where(allowed, w, 0.0)
        else:
            w = tl.where(allowed, softplus(s), 0.0)
            if MAP == 4:
                t = tl.maximum(count[:, None] * w * inv_sum[:, None] - offset[:, None], 0.0) * inv_max[:, None]
                w = tl.where(allowed & (inv_max[:, None] > 0.0), power_of(t, power, POWER), w)
            weight_sum += tl.sum(w, 1)
        v = load(v_base, cols, svs, out_features, svd, S, DV)
        acc += product(w.to(v.dtype), v, UPCAST)

    inv_weight = tl.where(weight_sum > 0.0, 1.0 / tl.where(weight_sum > 0.0, weight_sum, 1.0), 0.0)
    if MAP == 0 or MAP == 3 or MAP == 4:
        acc = acc * inv_weight[:, None]
    if MAP == 0:  # NaN in a row makes its sum NaN; 1 / NaN must not be replaced by 0
        acc = tl.where((weight_sum != weight_sum)[:, None], float("nan"), acc)
        level = tl.where(weight_sum == 0.0, 0.0, top + tl.log(tl.where(weight_sum == 0.0, 1.0, weight_sum)))
    if GATE != 0:
        gate_features = out_features if GATE == 2 else tl.zeros_like(out_features)
        gate = load(gate_ptr + b * sgb + h * sgh, rows, sgt, gate_features, sgd, T, DV)
        acc = acc * tl.sigmoid(gate.to(tl.float32))
    inside = rows < T
    if MAP == 0 or MAP == 2:
        tl.store(stats + rows, level, mask=inside)
    if MAP == 3:
        tl.store(stats + rows, inv_weight, mask=inside)
    if MAP == 4:
        tl.store(stats + rows, inv_sum, mask=inside)
        tl.store(stats + stats_stride + rows, count, mask=inside)
        tl.store(stats + 2 * stats_stride + rows, offset, mask=inside)
        tl.store(stats + 3 * stats_stride + rows, inv_max, mask=inside)
        tl.store(stats + 4 * stats_stride + rows, inv_weight, mask=inside)
    store(out_ptr + b * sob + h * soh, rows, sot, out_features, sod, T, DV, acc)
