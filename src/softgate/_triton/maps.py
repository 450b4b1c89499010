"""From scores to weights and back, for each attention: the only part in which the kernels differ.

``ROWS`` names the row statistics that a map keeps from forward for backward, in the order of the array (K, B·H, T):

    softmax   log-sum-exp, Δ
    sigmoid   none
    clipped   log-sum-exp, Δ
    lssa      1/l, Δ                                (l is the sum of f = softplus(z))
    lssar     1/l, N, o, 1/max u, 1/r, Δ, E         (u = relu(N f / l - o), r the sum of (u / max u)^p)

In a row of ties u is 0 everywhere; it keeps the weights of lssa, marked by 1/max u = 0. Δ and E are the sums that
backward subtracts: formulas in the papers' specifications, verified against autograd by the tests.
"""

from __future__ import annotations

import triton
import triton.language as tl

SOFTMAX, SIGMOID, CLIPPED, LSSA, LSSAR = range(5)
ROWS = {SOFTMAX: 2, SIGMOID: 0, CLIPPED: 2, LSSA: 2, LSSAR: 7}


@triton.jit
def row_statistics(base, rows, T, stride, COUNT: tl.constexpr):
    """The first COUNT of seven statistics of ``rows``, zeros for the others."""
    inside = rows < T
    none = tl.zeros_like(rows).to(tl.float32)
    a = tl.load(base + rows, mask=inside, other=0.0) if COUNT > 0 else none
    b = tl.load(base + stride + rows, mask=inside, other=0.0) if COUNT > 1 else none
    c = tl.load(base + 2 * stride + rows, mask=inside, other=0.0) if COUNT > 2 else none
    d = tl.load(base + 3 * stride + rows, mask=inside, other=0.0) if COUNT > 3 else none
    e = tl.load(base + 4 * stride + rows, mask=inside, other=0.0) if COUNT > 4 else none
    f = tl.load(base + 5 * stride + rows, mask=inside, other=0.0) if COUNT > 5 else none
    g = tl.load(base + 6 * stride + rows, mask=inside, other=0.0) if COUNT > 6 else none
    return a, b, c, d, e, f, g


@triton.jit
def softplus(z):
    """log(1 + e^z) to float32 rounding, also where e^z vanishes beside 1."""
    x = tl.exp(-tl.abs(z))
    u = 1.0 + x
    log1p = tl.where(u == 1.0, x, tl.log(u) * x / tl.where(u == 1.0, 1.0, u - 1.0))
    return tl.maximum(z, 0.0) + log1p


@triton.jit
def integer_power(t, POWER: tl.constexpr):
    """``t ** POWER`` for an integer POWER from 0 to 63, by squaring."""
    result = tl.full(t.shape, 1.0, tl.float32)
    for bit in tl.static_range(6):
        if (POWER >> bit) & 1:
            result = result * t
        t = t * t
    return result


@triton.jit
def power_of(t, power, POWER: tl.constexpr):
    """``t ** power`` for t in [0, 1]; POWER is the exponent if it is an integer, else -1."""
    if POWER >= 0:
        return integer_power(t, POWER)
    return tl.where(t > 0.0, tl.exp2(power * tl.log2(tl.where(t > 0.0, t, 1.0))), 0.0)


@triton.jit
def one_less_power(t, power, POWER: tl.constexpr):
    """``t ** (power - 1)``, 0 where t is 0."""
    if POWER >= 1:
        return tl.where(t > 0.0, integer_power(t, POWER - 1), 0.0)
    return tl.where(t > 0.0, tl.exp2((power - 1.0) * tl.log2(tl.where(t > 0.0, t, 1.0))), 0.0)


@triton.jit
def clip_weights(p, gamma, zeta):
    """Softmax weights stretched to (gamma, zeta) and clipped to [0, 1]."""
    return tl.minimum(tl.maximum((zeta - gamma) * p + gamma, 0.0), 1.0)


@triton.jit
def weights(scores, allowed, stats, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr):
    """Normalised weights of a tile, exactly 0 where not ``allowed``."""
    if MAP == 1:
        w = tl.sigmoid(scores)
    elif MAP == 0 or MAP == 2:
        w = probabilities(scores, allowed, stats[0])
        if MAP == 2:
            w = clip_weights(w, gamma, zeta)
    else:
        w = tl.where(allowed, softplus(scores), 0.0) * stats[0][:, None]
        if MAP == 4:
            count, offset, inv_max, inv_r = stats[1], stats[2], stats[3], stats[4]
            t = tl.maximum(count[:, None] * w - offset[:, None], 0.0) * inv_max[:, None]
            w = tl.where(inv_max[:, None] > 0.0, power_of(t, power, POWER) * inv_r[:, None], w)
    return tl.where(allowed, w, 0.0)


@triton.jit
def probabilities(scores, allowed, level):
    """Softmax weights from the scores and the log-sum-exp of their rows."""
    return tl.exp(tl.where(allowed, scores, float("-inf")) - level[:, None])


@triton.jit
def clipped_gradient(p, dweights, gamma, zeta):
    """Clipped softmax: gradient of the stretched weights, 0 where the clip acts."""
    stretched = (zeta - gamma) * p + gamma
    return tl.where((stretched >= 0.0) & (stretched <= 1.0), (zeta - gamma) * dweights, 0.0)


@triton.jit
def reweighted_gradient(first, dweights, stats, power, POWER: tl.constexpr):
    """LSSAR: gradient of u, from the stage-1 weights and the gradient of the final ones."""
    count, offset, inv_max, inv_r, delta = stats[1], stats[2], stats[3], stats[4], stats[5]
    t = tl.maximum(count[:, None] * first - offset[:, None], 0.0) * inv_max[:, None]
    slope = power * one_less_power(t, power, POWER) * inv_r[:, None] * inv_max[:, None]
    return slope * (dweights - delta[:, None])


@triton.jit
def score_gradient(scores, allowed, dweights, stats, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr):
    """Gradient of the scores of a tile from that of its weights."""
    if MAP == 1:
        p = tl.sigmoid(scores)
        ds = dweights * p * (1.0 - p)
    elif MAP == 0:
        ds = probabilities(scores, allowed, stats[0]) * (dweights - stats[1][:, None])
    elif MAP == 2:
        p = probabilities(scores, allowed, stats[0])
        ds = p * (clipped_gradient(p, dweights, gamma, zeta) - stats[1][:, None])
    elif MAP == 3:
        ds = (dweights - stats[1][:, None]) * stats[0][:, None] * tl.sigmoid(scores)
    else:
        count, inv_max, delta, e = stats[1], stats[3], stats[5], stats[6]
        first = tl.where(allowed, softplus(scores), 0.0) * stats[0][:, None]
        du = reweighted_gradient(first, dweights, stats, power, POWER)
        df = tl.where(inv_max[:, None] > 0.0, count[:, None] * du - e[:, None], dweights - delta[:, None])
        ds = df * stats[0][:, None] * tl.sigmoid(scores)
    return tl.where(allowed, ds, 0.0)


@triton.jit
def row_term(scores, allowed, dweights, stats, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr):
    """What backward sums over each row first: Δ of clipped softmax, E of LSSAR."""
    if MAP == 2:
        p = probabilities(scores, allowed, stats[0])
        term = p * clipped_gradient(p, dweights, gamma, zeta)
    else:
        first = tl.where(allowed, softplus(scores), 0.0) * stats[0][:, None]
        term = stats[2][:, None] * reweighted_gradient(first, dweights, stats, power, POWER)
    return tl.sum(tl.where(allowed, term, 0.0), 1)
