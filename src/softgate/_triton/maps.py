"""From scores to weights and back, for each attention: the only part in which the kernels differ.

``ROWS`` names the row statistics that a map keeps from forward for backward, in the order of the array (K, B·H, T):

    softmax   log-sum-exp, Δ
    sigmoid   none
    clipped   log-sum-exp, Δ
    lssa      1/l, Δ                                (l is the sum of f = softplus(z))
    lssar     a, b, 1/r, c, k, Δ, E                 (t = relu(a f - b) = u / max u, r the sum of t^p)

with u = relu(N f / l - o), a = N / (l max u), b = o / max u. The weights are t^p / r + k f: in a row of ties, where u
is 0 everywhere, a, b and 1/r are 0 and k is 1/l, which leaves the weights of lssa; in all others k is 0. Likewise
c = p N / (l r max u), and the gradient of the scores is ((c t^(p-1) + k) (dw - Δ) - E) sigmoid(z). Before backward E
holds o / N. Δ and E are the sums that backward subtracts: formulas in the papers' specifications, verified against
autograd by the tests.

Statistics come as tensors that broadcast against the scores: a tile may have the queries in its rows or its columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

SOFTMAX, SIGMOID, CLIPPED, LSSA, LSSAR = range(5)
ROWS = {SOFTMAX: 2, SIGMOID: 0, CLIPPED: 2, LSSA: 2, LSSAR: 7}
LOG2E = tl.constexpr(1.4426950408889634)


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
def log1p_of_fraction(x):
    """log(1 + x) for x in [0, 1] to float32 rounding, small x too: x times a polynomial, without logarithm or division.

    The polynomial interpolates log(1 + x) / x at ten Chebyshev points of [0, 1].
    """
    p = -0.0031760570127516985 * x + 0.019542528316378593
    p = p * x - 0.05637361481785774
    p = p * x + 0.10543623566627502
    p = p * x - 0.1526966691017151
    p = p * x + 0.1966327428817749
    p = p * x - 0.24951615929603577
    p = p * x + 0.33329710364341736
    p = p * x - 0.49999892711639404
    return (p * x + 1.0) * x


@triton.jit
def softplus(z):
    """log(1 + e^z) to float32 rounding, also where e^z vanishes beside 1."""
    return tl.maximum(z, 0.0) + log1p_of_fraction(tl.exp(-tl.abs(z)))


@triton.jit
def softplus_slope(z):
    """Its derivative, sigmoid(z), from the exponential that :func:`softplus` takes."""
    x = tl.exp(-tl.abs(z))
    above = 1.0 / (1.0 + x)
    return tl.where(z < 0.0, x * above, above)


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
    """``t ** power`` for t in [0, 1], 0 where t is 0; POWER is the exponent if it is an integer, else -1."""
    if POWER >= 1:
        return integer_power(t, POWER)
    return tl.where(t > 0.0, tl.exp2(power * tl.log2(tl.where(t > 0.0, t, 1.0))), 0.0)


@triton.jit
def one_less_power(t, power, POWER: tl.constexpr):
    """``t ** (power - 1)``, 0 where t is 0."""
    if POWER >= 2:
        return integer_power(t, POWER - 1)
    return tl.where(t > 0.0, tl.exp2((power - 1.0) * tl.log2(tl.where(t > 0.0, t, 1.0))), 0.0)


@triton.jit
def clip_weights(p, gamma, zeta):
    """Softmax weights stretched to (gamma, zeta) and clipped to [0, 1]."""
    return tl.minimum(tl.maximum((zeta - gamma) * p + gamma, 0.0), 1.0)


@triton.jit
def exp_of_difference(s, level, PRODUCT: tl.constexpr):
    """exp(s - level); for scores of 16-bit inputs as a power of 2 with one multiplication, up to |level| roundings."""
    if PRODUCT == 0:
        return tl.exp2(s * LOG2E - level * LOG2E)
    else:
        return tl.exp(s - level)


@triton.jit
def probabilities(scores, allowed, level, PRODUCT: tl.constexpr):
    """Softmax weights from the scores and the log-sum-exp of their rows."""
    return exp_of_difference(tl.where(allowed, scores, float("-inf")), level, PRODUCT)


@triton.jit
def weights(scores, allowed, stats, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr, PRODUCT: tl.constexpr):
    """Normalised weights of a tile, exactly 0 where not ``allowed``."""
    if MAP == 1:
        w = tl.sigmoid(scores)
    elif MAP == 0:
        w = probabilities(scores, allowed, stats[0], PRODUCT)
    elif MAP == 2:
        w = clip_weights(probabilities(scores, allowed, stats[0], PRODUCT), gamma, zeta)
    elif MAP == 3:
        w = softplus(scores) * stats[0]
    else:
        f = tl.where(allowed, softplus(scores), 0.0)
        w = power_of(tl.maximum(stats[0] * f - stats[1], 0.0), power, POWER) * stats[2] + stats[4] * f
    return tl.where(allowed, w, 0.0)


@triton.jit
def clipped_gradient(p, dweights, gamma, zeta):
    """Clipped softmax: gradient of the stretched weights, 0 where the clip acts."""
    stretched = (zeta - gamma) * p + gamma
    return tl.where((stretched >= 0.0) & (stretched <= 1.0), (zeta - gamma) * dweights, 0.0)


@triton.jit
def reweighted_slope(scores, allowed, stats, power, POWER: tl.constexpr):
    """LSSAR: what multiplies dw - Δ in the gradient of f, but for ties: N p t^(p-1) / (l r max u)."""
    t = tl.maximum(stats[0] * tl.where(allowed, softplus(scores), 0.0) - stats[1], 0.0)
    return one_less_power(t, power, POWER) * stats[3]


@triton.jit
def score_gradient(
    scores, allowed, dweights, stats, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr, PRODUCT: tl.constexpr
):
    """Gradient of the scores of a tile from that of its weights."""
    if MAP == 1:
        p = tl.sigmoid(scores)
        ds = dweights * p * (1.0 - p)
    elif MAP == 0:
        ds = probabilities(scores, allowed, stats[0], PRODUCT) * (dweights - stats[1])
    elif MAP == 2:
        p = probabilities(scores, allowed, stats[0], PRODUCT)
        ds = p * (clipped_gradient(p, dweights, gamma, zeta) - stats[1])
    elif MAP == 3:
        ds = (dweights - stats[1]) * stats[0] * softplus_slope(scores)
    else:
        df = (reweighted_slope(scores, allowed, stats, power, POWER) + stats[4]) * (dweights - stats[5]) - stats[6]
        ds = df * softplus_slope(scores)
    return tl.where(allowed, ds, 0.0)


@triton.jit
def reweighted_sums(scores, allowed, dweights, stats, power, POWER: tl.constexpr, PRODUCT: tl.constexpr):
    """LSSAR: sums of w dw, of g dw and of g over each row, where Δ is the first and E is o / N (Σ g dw - Δ Σ g).

    Outputs rounded to 16 bits are no longer near enough to the weights to make Δ of them.
    """
    g = tl.where(allowed, reweighted_slope(scores, allowed, stats, power, POWER), 0.0)
    w = weights(scores, allowed, stats, 0.0, 1.0, power, 4, POWER, PRODUCT)
    return tl.sum(w * dweights, 1), tl.sum(g * dweights, 1), tl.sum(g, 1)


@triton.jit
def row_term(
    scores, allowed, dweights, stats, gamma, zeta, power, MAP: tl.constexpr, POWER: tl.constexpr, PRODUCT: tl.constexpr
):
    """What backward sums over each row first: Δ of clipped softmax, E of LSSAR."""
    if MAP == 2:
        p = probabilities(scores, allowed, stats[0], PRODUCT)
        term = p * clipped_gradient(p, dweights, gamma, zeta)
    else:
        term = stats[6] * reweighted_slope(scores, allowed, stats, power, POWER) * (dweights - stats[5])
    return tl.sum(tl.where(allowed, term, 0.0), 1)
