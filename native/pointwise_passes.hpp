// The kernels of pointwise.hpp on the vectors of the instruction set that includes this.
#pragma once

namespace softgate {
namespace {

// Beyond it exp(-x²/2) is 0; within it no infinity meets a 0. NaN stays NaN.
inline Vec bounded(Vec x) { return min2(set(40.0f), max2(set(-40.0f), x)); }

inline Vec bell_of(Vec x) { return exp_of(mul(mul(x, x), set(-0.5f))); }

// f(place, how to load there, how to store there) for all entries from first to last.
template <class T, class F>
inline void by_vectors_of(Index first, Index last, F f) {
    Index j = first;
    for (; j + kWidth <= last; j += kWidth)
        f(j, [](const T* p) { return load(p); }, [](T* p, Vec v) { store(p, v); });
    if (j < last)
        f(j, [=](const T* p) { return load_n(p, last - j, 0.0f); }, [=](T* p, Vec v) { store_n(p, v, last - j); });
}

template <class T>
void crrelu_entries(const Crrelu& c, Index first, Index last) {
    const T* x = static_cast<const T*>(c.x);
    T* y = static_cast<T*>(c.y);
    const Vec eps = set(c.eps);
    by_vectors_of<T>(first, last, [&](Index j, auto get, auto put) {
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
        by_vectors_of<T>(b * c.block, end, [&](Index j, auto get, auto put) {
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

template <class T>
PointwiseKernels pointwise_of() {
    return {crrelu_entries<T>, crrelu_backward_blocks<T>};
}

inline PointwiseKernels pointwise_of_this_isa(Dtype dtype) {
    if (dtype == Dtype::bf16) return pointwise_of<bf16>();
    if (dtype == Dtype::f16) return pointwise_of<f16>();
    return pointwise_of<float>();
}

}  // namespace
}  // namespace softgate
