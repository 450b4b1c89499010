// The kernels of pointwise.hpp on the vectors of the instruction set that includes this.
#pragma once

namespace softgate {
namespace {

// Beyond it exp(-x²/2) is 0; within it no infinity meets a 0. NaN stays NaN.
inline Vec bounded(Vec x) { return min2(set(40.0f), max2(set(-40.0f), x)); }

inline Vec bell_of(Vec x) { return exp_of(mul(mul(x, x), set(-0.5f))); }

// f(place, how to load there, how to store there) for all entries from first to last.
template <class F>
inline void by_vectors(Index first, Index last, F f) {
    Index j = first;
    for (; j + kWidth <= last; j += kWidth)
        f(j, [](const auto* p) { return load(p); }, [](auto* p, Vec v) { store(p, v); });
    if (j < last)
        f(j, [=](const auto* p) { return load_n(p, last - j, 0.0f); },
          [=](auto* p, Vec v) { store_n(p, v, last - j); });
}

template <class T>
void crrelu_entries(const Crrelu& c, Index first, Index last) {
    const T* x = static_cast<const T*>(c.x);
    T* y = static_cast<T*>(c.y);
    const Vec eps = set(c.eps);
    by_vectors(first, last, [&](Index j, auto get, auto put) {
        const Vec v = get(x + j), inner = bounded(v);
        put(y + j, fma(eps, mul(inner, bell_of(inner)), max2(set(0.0f), v)));
    });
}

template <class T>
void crrelu_backward_blocks(const Crrelu& c, Index first, Index last) {
    const T *x = static_cast<const T*>(c.x), *dy = static_cast<const T*>(c.dy);
    T* dx = static_cast<T*>(c.dx);
    const Vec eps = set(c.eps), one = set(1.0f), zero = set(0.0f);
    for (Index b = first; b < last; ++b) {
        Vec sum = zero;
        const Index end = (b + 1) * c.block < c.entries ? (b + 1) * c.block : c.entries;
        by_vectors(b * c.block, end, [&](Index j, auto get, auto put) {
            const Vec v = get(x + j), d = get(dy + j), inner = bounded(v), bell = bell_of(inner);
            if (dx != nullptr) {
                const Vec slope = fma(eps, mul(fnma(inner, inner, one), bell), where_less(zero, v, one, zero));
                put(dx + j, mul(d, slope));
            }
            sum = fma(d, mul(inner, bell), sum);
        });
        if (c.sums != nullptr) c.sums[b] = sum_double(sum);
    }
}

// decay v + gain x, rounded to float where torch does: a spike more or less is not a matter of tolerance.
inline Vec charged(Vec v, Vec x, Vec decay, Vec gain) {
    return rounded(add(rounded(mul(decay, v)), rounded(mul(gain, x))));
}

// 1 where u reaches the threshold, else 0, also for NaN.
inline Vec spike_of(Vec u, Vec threshold) {
    return where_less(threshold, u, set(1.0f), where_equal(threshold, u, set(1.0f), set(0.0f)));
}

// What a spike leaves of u; a selection, so that infinity leaves no NaN.
inline Vec after_spike(const Lif& c, Vec u, Vec s) {
    if (c.soft) return rounded(sub(u, mul(set(c.threshold), s)));
    return where_equal(s, set(0.0f), u, set(0.0f));
}

template <class T>
void lif_entries(const Lif& c, Index first, Index last) {
    const T* x = static_cast<const T*>(c.x);
    T* s = static_cast<T*>(c.s);
    const Vec decay = set(c.decay), gain = set(c.gain), threshold = set(c.threshold);
    by_vectors(first, last, [&](Index j, auto get, auto put) {
        Vec v = c.v_first != nullptr ? get(c.v_first + j) : set(0.0f);
        for (Index t = 0; t < c.steps; ++t) {
            const Vec u = charged(v, get(x + t * c.entries + j), decay, gain), spike = spike_of(u, threshold);
            put(s + t * c.entries + j, spike);
            v = after_spike(c, u, spike);
        }
        if (c.v_last != nullptr) put(c.v_last + j, v);
    });
}

// alpha e / (1 + e)² with e = exp(-alpha |u - threshold|), 0 where u is not finite.
inline Vec surrogate_slope(Vec u, Vec threshold, Vec alpha) {
    const Vec e = exp_of(negative_abs(mul(alpha, sub(u, threshold)))), one_more = add(set(1.0f), e);
    const Vec slope = div(mul(alpha, e), mul(one_more, one_more));
    return where_equal(sub(u, u), set(0.0f), slope, set(0.0f));
}

template <class T>
void lif_backward_entries(const Lif& c, Index first, Index last) {
    const T *x = static_cast<const T*>(c.x), *ds = static_cast<const T*>(c.ds);
    T* dx = static_cast<T*>(c.dx);
    const Vec decay = set(c.decay), gain = set(c.gain), threshold = set(c.threshold), zero = set(0.0f);
    by_vectors(first, last, [&](Index j, auto get, auto put) {
        Vec u[kMostSteps];  // computed once more: less traffic than to write and read them
        Vec v = c.v_first != nullptr ? get(c.v_first + j) : zero;
        for (Index t = 0; t < c.steps; ++t) {
            u[t] = charged(v, get(x + t * c.entries + j), decay, gain);
            v = after_spike(c, u[t], spike_of(u[t], threshold));
        }
        Vec dv = c.dv_last != nullptr ? get(c.dv_last + j) : zero;
        for (Index t = c.steps - 1; t >= 0; --t) {
            const Vec slope = surrogate_slope(u[t], threshold, set(c.alpha));
            Vec du = c.soft ? dv : where_equal(spike_of(u[t], threshold), zero, dv, zero);
            Vec to_spike = get(ds + t * c.entries + j);
            if (!c.detached) {
                const Vec taken = c.soft ? threshold : where_equal(sub(u[t], u[t]), zero, u[t], zero);
                to_spike = fnma(dv, taken, to_spike);
            }
            du = fma(to_spike, slope, du);
            if (dx != nullptr) put(dx + t * c.entries + j, mul(gain, du));
            dv = mul(decay, du);
        }
        if (c.dv_first != nullptr) put(c.dv_first + j, dv);
    });
}

template <class T>
PointwiseKernels pointwise_of() {
    return {crrelu_entries<T>, crrelu_backward_blocks<T>, lif_entries<T>, lif_backward_entries<T>};
}

inline PointwiseKernels pointwise_of_this_isa(Dtype dtype) {
    if (dtype == Dtype::bf16) return pointwise_of<bf16>();
    if (dtype == Dtype::f16) return pointwise_of<f16>();
    return pointwise_of<float>();
}

}  // namespace
}  // namespace softgate
