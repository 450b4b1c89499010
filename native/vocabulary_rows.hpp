// The sweeps over one row of logits, on the lanes that were included before. A row is walked in blocks that stay in the
// first-level cache; float sums of a block are folded into a double.
#pragma once

namespace softgate {
namespace {

constexpr float kInfinity = __builtin_inff();

inline double log1p_signed(double z) { return z >= 0.0 ? std::log1p(z) : -std::log1p(-z); }

// tanh; near 0 a series, where 1 - exp would cancel.
inline Vec tanh_of(Vec x) {
    const Vec w = mul(x, x);
    Vec p = fma(w, set(-0x1.22725Ep-7f), set(0x1.664F48p-6f));
    p = fma(p, w, set(-0x1.BA1BA2p-5f));
    p = fma(p, w, set(0x1.111112p-3f));
    p = fma(p, w, set(-0x1.555556p-2f));
    const Vec series = fma(mul(x, w), p, x);
    const Vec down = negative_abs(x), e = exp_of(add(down, down));
    const Vec size = div(sub(set(1.0f), e), add(set(1.0f), e));
    const Vec far = where_less(x, set(0.0f), sub(set(0.0f), size), size);
    return where_less(w, set(0.1225f), series, far);
}

// What happens between the product and the loss. Scores of StableMax are kept before their link, whose exponential is
// the linear s(z) = 1 + z or 1 / (1 - z).
struct Scores {
    const Vocabulary& v;
    const bool capped = v.softcap > 0.0f, plain = !capped && v.temperature == 1.0f && v.bias == nullptr;
    const Vec cap = set(v.softcap), inverse_cap = set(capped ? 1.0f / v.softcap : 0.0f);
    const Vec inverse_temperature = set(1.0f / v.temperature);
    const Vec back = set(capped ? v.temperature / v.softcap : 0.0f);

    explicit Scores(const Vocabulary& vocabulary) : v(vocabulary) {}
    Vec of(Vec z) const {
        if (capped) z = mul(cap, tanh_of(mul(z, inverse_cap)));
        return mul(z, inverse_temperature);
    }
    void block(float* z, Index start, Index n) const {
        if (plain) return;
        if (v.bias == nullptr) return map_row(z, n, 0.0f, [&](Vec a) { return of(a); });
        const float* bias = v.bias + start;
        Index j = 0;
        for (; j + kWidth <= n; j += kWidth) store(z + j, of(add(load(z + j), load(bias + j))));
        if (j < n) store_n(z + j, of(add(load_n(z + j, n - j, 0.0f), load_n(bias + j, n - j, 0.0f))), n - j);
    }
    // d score / d z of what is kept, without the link.
    Vec slope(Vec score) const {
        if (!capped) return inverse_temperature;
        const Vec t = mul(score, back);
        return mul(fnma(t, t, set(1.0f)), inverse_temperature);
    }
    Vec exponential(Vec z) const {  // s(z) of StableMax; 0 for -inf
        const Vec below = min2(set(0.0f), z);
        const Vec s = div(set(1.0f), sub(set(1.0f), below));
        return where_less(z, set(0.0f), s, add(set(1.0f), z));
    }
};

template <class Work>
inline void over_blocks(Index n, Work work) {
    for (Index start = 0; start < n; start += kBlock) work(start, n - start < kBlock ? n - start : kBlock);
}

// The target's score is set aside, and -inf takes its place.
inline void set_aside(float* z, Index start, Index n, Index target, double& own) {
    if (target < start || target >= start + n) return;
    own = double(z[target - start]);
    z[target - start] = kMinusInfinity;
}

template <class Term>
inline double sum_of(const float* x, Index n, float fill, Term term) {
    Vec a = set(0.0f), b = set(0.0f);
    Index j = 0;
    for (; j + 2 * kWidth <= n; j += 2 * kWidth) {
        a = add(a, term(load(x + j)));
        b = add(b, term(load(x + j + kWidth)));
    }
    for (; j + kWidth <= n; j += kWidth) a = add(a, term(load(x + j)));
    if (j < n) b = add(b, term(load_n(x + j, n - j, fill)));
    return sum_double(add(a, b));
}

// Smoothing weight times score; a weight of 0 takes part nowhere, not even with a masked class.
inline double spread_of(const Vocabulary& v, const float* u, Index start, Index n, Index target) {
    double sum = 0.0;
    for (Index j = 0; j < n; ++j) {
        const float s = v.spread == nullptr ? v.even_spread : v.spread[start + j];
        if (s != 0.0f && start + j != target) sum += double(s) * double(u[j]);
    }
    return sum;
}

void scan_row(const Vocabulary& v, Index row) {
    const Scores scores(v);
    const Index target = Index(v.target[row]);
    const bool smooth = v.spread != nullptr || v.even_spread != 0.0f;
    float* z = v.z + row * v.stride;
    float top = kMinusInfinity;
    double total = 0.0, spread = 0.0, own = 0.0;
    over_blocks(v.classes, [&](Index start, Index n) {
        float* u = z + start;
        scores.block(u, start, n);
        set_aside(u, start, n, target, own);
        if (smooth) spread += spread_of(v, u, start, n, target);
        const float max = row_max(u, n);
        if (v.compressed) {
            if (max > top) top = max;
            total += sum_of(u, n, kMinusInfinity, [&](Vec a) { return scores.exponential(a); });
            return;
        }
        if (max > top) {
            if (total != 0.0) total *= std::exp(double(top) - double(max));
            top = max;
        }
        const Vec shift = set(top == kMinusInfinity ? 0.0f : top);
        total += sum_of(u, n, kMinusInfinity, [&](Vec a) { return exp_of(sub(a, shift)); });
    });
    double high = double(top);
    if (v.compressed) {
        high = top == kMinusInfinity ? high : log1p_signed(high);
        if (top != kMinusInfinity) total *= std::exp(-high);
        own = log1p_signed(own);
    }
    v.stats.top[row] = high, v.stats.total[row] = total, v.stats.spread[row] = spread, v.stats.own[row] = own;
}

inline float bounded(double a) {
    constexpr double largest = double(std::numeric_limits<float>::max());
    return float(a > largest ? largest : a < -largest ? -largest : a);
}

void slopes_row(const Vocabulary& v, Index row) {
    const Scores scores(v);
    float* u = v.z + row * v.stride;
    const double top = v.top[row] == -double(kInfinity) ? 0.0 : v.top[row];
    if (v.compressed) {  // s / (1 + |z|) = min(s, 1)^2
        const Vec scale = set(bounded(v.scale[row] * std::exp(-top)));
        return map_row(u, v.classes, kMinusInfinity, [&](Vec a) {
            const Vec s = min2(set(1.0f), scores.exponential(a));
            return mul(mul(scale, mul(s, s)), scores.slope(a));
        });
    }
    const Vec shift = set(float(top)), scale = set(bounded(v.scale[row])), constant = set(bounded(v.constant[row]));
    if (v.spread == nullptr) {
        const Vec even = mul(constant, set(v.even_spread));
        return map_row(u, v.classes, kMinusInfinity, [&](Vec a) {
            return mul(sub(mul(scale, exp_of(sub(a, shift))), even), scores.slope(a));
        });
    }
    Index j = 0;
    const auto of = [&](Vec a, Vec s) {
        return mul(fnma(constant, s, mul(scale, exp_of(sub(a, shift)))), scores.slope(a));
    };
    for (; j + kWidth <= v.classes; j += kWidth) store(u + j, of(load(u + j), load(v.spread + j)));
    if (j == v.classes) return;
    const Index left = v.classes - j;
    store_n(u + j, of(load_n(u + j, left, kMinusInfinity), load_n(v.spread + j, left, 0.0f)), left);
}

void hinge_row(const Vocabulary& v, Index row) {
    const Scores scores(v);
    const Index target = Index(v.target[row]);
    const float factor = bounded(2.0 * v.scale[row]);
    const Vec factors = set(factor), zero = set(0.0f), one = set(1.0f);
    float* z = v.z + row * v.stride;
    float top = kMinusInfinity;
    double total = 0.0, own = 0.0;
    over_blocks(v.classes, [&](Index start, Index n) {
        float* u = z + start;
        scores.block(u, start, n);
        set_aside(u, start, n, target, own);
        const float max = row_max(u, n);
        if (max > top) top = max;
        Vec sum = zero;
        map_row(u, n, kMinusInfinity, [&](Vec a) {
            const Vec h = max2(zero, add(one, a));
            sum = fma(h, h, sum);
            return mul(mul(factors, h), scores.slope(a));
        });
        total += sum_double(sum);
    });
    if (target >= 0) {
        const float slope = reduce_max(scores.slope(set(float(own))));
        const double h = 1.0 - own;
        const double violated = h < 0.0 ? 0.0 : h;  // NaN stays
        total += violated * violated;
        z[target] = bounded(-double(factor) * violated * double(slope));
    }
    v.stats.top[row] = double(top), v.stats.total[row] = total, v.stats.spread[row] = 0.0, v.stats.own[row] = own;
}

void sweep_row(const Vocabulary& v, Sweep kind, Index row) {
    switch (kind) {
        case Sweep::scan: return scan_row(v, row);
        case Sweep::slopes:
            slopes_row(v, row);
            if (v.target[row] >= 0) v.z[row * v.stride + Index(v.target[row])] = bounded(v.at_target[row]);
            return;
        case Sweep::hinge: return hinge_row(v, row);
    }
}

}  // namespace
}  // namespace softgate
