// exp, sigmoid and softplus of one vector, and loops over pieces of rows. NaN stays NaN, -inf gives exactly 0.
#pragma once

namespace softgate {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

inline Vec exp_of(Vec x) {  // x <= 0
    const ExtExp e = bounded_ext_exp(x);
    return scale2(e.p, e.n);
}

// Through exp(-|x|), which cannot overflow, so that small results keep their relative accuracy.
inline Vec sigmoid_of(Vec x) {
    const Vec e = exp_of(negative_abs(x));
    return div(where_less(x, set(0.0f), e, set(1.0f)), add(set(1.0f), e));
}

// max(x, 0) + log(1 + e) with e = exp(-|x|), the logarithm as 2 atanh(e / (2 + e)): relative error 8e-9.
inline Vec softplus_of(Vec x) {
    const Vec e = exp_of(negative_abs(x));
    const Vec z = div(e, add(set(2.0f), e)), w = mul(z, z);
    Vec p = fma(w, set(0x1.2055EEp-3f), set(0x1.1E5CFCp-3f));
    p = fma(p, w, set(0x1.99DA14p-3f));
    p = fma(p, w, set(0x1.5554E2p-2f));
    p = fma(p, w, set(1.0f));
    return fma(add(z, z), p, max2(set(0.0f), x));
}

// t^n for n >= 0.
inline Vec power_of(Vec t, int n) {
    Vec result = set(1.0f);
    for (;; t = mul(t, t)) {
        if (n & 1) result = mul(result, t);
        n >>= 1;
        if (n == 0) return result;
    }
}

inline float exp_of(float x) { return reduce_max(exp_of(set(x))); }  // x <= 0, not NaN

// x[j] = f(x[j]); lanes beyond the end hold fill.
template <class F>
inline void map_row(float* x, Index n, float fill, F f) {
    Index j = 0;
    for (; j + kWidth <= n; j += kWidth) store(x + j, f(load(x + j)));
    if (j < n) store_n(x + j, f(load_n(x + j, n - j, fill)), n - j);
}

// The same with a second row; f changes both vectors.
template <class F>
inline void map_rows(float* x, float* y, Index n, float fill, F f) {
    Index j = 0;
    for (; j + kWidth <= n; j += kWidth) {
        Vec a = load(x + j), b = load(y + j);
        f(a, b);
        store(x + j, a);
        store(y + j, b);
    }
    if (j == n) return;
    Vec a = load_n(x + j, n - j, fill), b = load_n(y + j, n - j, 0.0f);
    f(a, b);
    store_n(x + j, a, n - j);
    store_n(y + j, b, n - j);
}

template <class F>
inline void visit_row(const float* x, Index n, float fill, F f) {
    Index j = 0;
    for (; j + kWidth <= n; j += kWidth) f(load(x + j));
    if (j < n) f(load_n(x + j, n - j, fill));
}

inline float row_max(const float* x, Index n) {  // NaN is ignored
    Vec top = set(kMinusInfinity);
    visit_row(x, n, kMinusInfinity, [&](Vec v) { top = max2(v, top); });
    return reduce_max(top);
}

inline void scale_row(float* x, Index n, float factor) {
    const Vec f = set(factor);
    map_row(x, n, 0.0f, [=](Vec v) { return mul(v, f); });
}

inline void clear(float* x, Index n) {
    for (Index j = 0; j < n; ++j) x[j] = 0.0f;
}

}  // namespace
}  // namespace softgate
