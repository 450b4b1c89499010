// One pass over a contiguous piece of a row, for the instruction set whose vec_*.hpp was included before.
// Float partial sums are folded into a double after every block, so that long rows keep their accuracy.
#pragma once

namespace softgate {
namespace {

constexpr float kInf = __builtin_inff();
constexpr Index kUnroll = 4;
constexpr Index kStep = kUnroll * kWidth;
constexpr Index kAhead = 2048;  // bytes; non-temporal stores keep the hardware prefetcher from running ahead itself

template <class T>
const T* as(const void* p) {
    return static_cast<const T*>(p);
}

// 2^d for integral d <= 0, 0 below the range of double.
inline double exp2_negative(double d) {
    if (!(d > -1022.0)) return 0.0;
    const std::uint64_t bits = std::uint64_t(std::int64_t(d) + 1023) << 52;
    double value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
float pass_max(const void* raw, Index n) {
    const T* x = as<T>(raw);
    Vec m[kUnroll];
    for (Vec& v : m) v = set(-kInf);
    Index i = 0;
    for (; i + kStep <= n; i += kStep) {
        for (Index k = 0; k < kUnroll; ++k) m[k] = max2(load(x + i + k * kWidth), m[k]);
    }
    for (; i + kWidth <= n; i += kWidth) m[0] = max2(load(x + i), m[0]);
    if (i < n) m[1] = max2(load_n(x + i, n - i, -kInf), m[1]);
    return reduce_max(max2(max2(m[0], m[1]), max2(m[2], m[3])));
}

template <class T>
bool pass_has_nan(const void* raw, Index n) {
    const T* x = as<T>(raw);
    Index i = 0;
    for (; i + kWidth <= n; i += kWidth)
        if (any_nan(load(x + i))) return true;
    return i < n && any_nan(load_n(x + i, n - i, 0.0f));
}

// Sum of K vectors, K a power of two, without a chain of roundings. A recursion, so that they stay in registers: GCC does
// not unroll the loop with a halving bound.
template <Index K>
inline Vec pairwise(const Vec* s) {
    if constexpr (K == 1)
        return s[0];
    else
        return add(pairwise<K / 2>(s), pairwise<K / 2>(s + K / 2));
}

// Sum over one block of term(i, lanes), where lanes < kWidth only for the tail.
template <class Term>
inline double block_sum(Index n, Term term) {
    constexpr Index kTree = 8;  // vectors added pairwise first: few roundings follow one another
    Vec whole = set(0.0f), rest = set(0.0f);
    Index i = 0;
    for (; i + kTree * kWidth <= n; i += kTree * kWidth) {
        Vec s[kTree];
        for (Index k = 0; k < kTree; ++k) s[k] = term(i + k * kWidth, kWidth);
        whole = add(whole, pairwise<kTree>(s));
    }
    for (; i + kWidth <= n; i += kWidth) rest = add(rest, term(i, kWidth));
    if (i < n) rest = add(rest, term(i, n - i));
    return sum_double(add(whole, rest));
}

template <class Block>
inline double sum_of_blocks(Index n, Block block) {
    double total = 0;
    for (Index i = 0; i < n; i += kBlock) total += block(i, n - i < kBlock ? n - i : kBlock);
    return total;
}

template <class T>
inline Vec load_lanes(const T* x, Index lanes, float fill) {
    return lanes == kWidth ? load(x) : load_n(x, lanes, fill);
}

template <class T>
inline double block_exp_sum(const T* x, Index n, const Window& window) {
    return block_sum(n, [&](Index i, Index lanes) { return window(load_lanes(x + i, lanes, -kInf)); });
}

template <class T>
double pass_exp_sum(const void* raw, Index n, Reference at) {
    const T* x = as<T>(raw);
    const Window window(at);
    return sum_of_blocks(n, [&](Index i, Index len) { return block_exp_sum(x + i, len, window); });
}

template <class T>
double pass_exp_store(const void* raw, float* e, Index n, Reference at) {
    const T* x = as<T>(raw);
    const Window window(at);
    return sum_of_blocks(n, [&](Index start, Index len) {
        return block_sum(len, [&](Index i, Index lanes) {
            const Vec v = window(load_lanes(x + start + i, lanes, -kInf));
            if (lanes == kWidth)
                store(e + start + i, v);
            else
                store_n(e + start + i, v, lanes);
            return v;
        });
    });
}

// Blocked online softmax (Milakov and Gimelshein 2018, per block instead of per element): the maximum of a block is
// found while it comes into the first-level cache, the running sum is rescaled at most once per block.
template <class T>
Stats pass_online(const void* raw, Index n, bool logarithm) {
    const T* x = as<T>(raw);
    Stats total{0.0, {0.0f, 0.0f}, -kInf};
    for (Index i = 0; i < n; i += kBlock) {
        const Index len = n - i < kBlock ? n - i : kBlock;
        const float m = pass_max<T>(x + i, len);
        if (m > total.max) {
            const Reference at = reference_for(m, logarithm);
            const double grown = (double(at.shift) - double(total.at.shift)) * 1.44269504088896341 +
                                 (double(at.exponent) - double(total.at.exponent));
            if (total.sum != 0.0 && grown != 0.0) total.sum *= __builtin_exp2(-grown);
            total.at = at;
            total.max = m;
        }
        total.sum += block_exp_sum(x + i, len, Window(total.at));
    }
    return total;
}

// Running (mantissa, exponent) sums per lane. Several new pairs share one new exponent. The empty sum has the exponent
// of the lowest x, not -inf: AVX-512 scales NaN by 2^-inf to 0, which would lose a NaN.
struct PairLanes {
    Vec m = set(0.0f);
    Vec n = set(kLowestExponent);

    // K is a power of two: the new terms are added pairwise.
    template <Index K>
    void include(const ExtExp (&e)[K]) {
        Vec top = n;
        for (Index k = 0; k < K; ++k) top = max2(e[k].n, top);
        Vec fresh[K];
        for (Index k = 0; k < K; ++k) fresh[k] = scale2(e[k].p, sub(e[k].n, top));
        m = add(scale2(m, sub(n, top)), pairwise<K>(fresh));
        n = top;
    }
};

template <class T>
Stats pair_block(const T* x, Index n) {
    constexpr Index kShare = 4, kAccumulators = 2, kTile = kShare * kAccumulators * kWidth;
    PairLanes acc[kAccumulators];
    Index i = 0;
    for (; i + kTile <= n; i += kTile) {
        for (Index a = 0; a < kAccumulators; ++a) {
            const T* base = x + i + a * kShare * kWidth;
            ExtExp e[kShare];
            for (Index k = 0; k < kShare; ++k) e[k] = bounded_ext_exp(load(base + k * kWidth));
            acc[a].include(e);
        }
    }
    for (; i < n; i += kWidth) {
        const Index lanes = n - i < kWidth ? n - i : kWidth;
        // Dead lanes hold the lowest exponent: either a live lane lies far above it, or the row is recomputed.
        const ExtExp e[1] = {bounded_ext_exp(load_lanes(x + i, lanes, -kInf))};
        acc[0].include(e);
    }
    const float top = reduce_max(max2(acc[0].n, acc[1].n));
    double sum = 0;
    for (const PairLanes& lanes : acc) sum += sum_double(scale2(lanes.m, sub(lanes.n, set(top))));
    return {sum, {0.0f, top}, __builtin_nanf("")};
}

template <class T>
Stats pass_pair(const void* raw, Index n) {
    const T* x = as<T>(raw);
    Stats total{0.0, {0.0f, kLowestExponent}, __builtin_nanf("")};
    for (Index i = 0; i < n; i += kBlock) {
        const Stats block = pair_block(x + i, n - i < kBlock ? n - i : kBlock);
        const float before = total.at.exponent, here = block.at.exponent, top = here > before ? here : before;
        total.sum = total.sum * exp2_negative(double(before) - double(top)) +
                    block.sum * exp2_negative(double(here) - double(top));
        total.at.exponent = top;
    }
    return total;
}

// y[i] = op(inputs at i): whole vectors, past the caches if asked, and a masked head and tail.
template <class TO, class Op, class... TI>
inline void map(TO* y, Index n, bool past_caches, Op op, const TI*... in) {
    Index i = 0;
    if (past_caches) {
        const Index bytes = kWidth * Index(sizeof(TO));
        Index head = ((bytes - Index(reinterpret_cast<std::uintptr_t>(y) % bytes)) % bytes) / Index(sizeof(TO));
        if (head > n) head = n;
        if (head) store_n(y, op(load_n(in, head, 0.0f)...), head);
        for (i = head; i + kWidth <= n; i += kWidth) {
            (prefetch(reinterpret_cast<const char*>(in + i) + kAhead), ...);
            stream(y + i, op(load(in + i)...));
        }
    } else {
        for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
            const Vec a = op(load(in + i)...), b = op(load(in + i + kWidth)...);
            store(y + i, a);
            store(y + i + kWidth, b);
        }
        for (; i + kWidth <= n; i += kWidth) store(y + i, op(load(in + i)...));
    }
    if (i < n) store_n(y + i, op(load_n(in + i, n - i, 0.0f)...), n - i);
    if (past_caches) stream_fence();
}

template <class T>
void pass_divide(const float* e, void* y, Index n, const Finish& how, bool past_caches) {
    const Divisor sum(how.sum, how.inverse);
    map(static_cast<T*>(y), n, past_caches, [=](Vec v) { return sum.divide(v); }, e);
}

template <class T>
void pass_write(const void* x, void* y, Index n, const Finish& how, bool past_caches) {
    T* out = static_cast<T*>(y);
    if (how.log) {
        const Vec high = set(how.high), low = set(how.low);
        map(out, n, past_caches, [=](Vec v) { return sub(sub(v, high), low); }, as<T>(x));
    } else {
        const Window window(how.at);
        const Vec inverse = set(how.inverse);
        map(out, n, past_caches, [=](Vec v) { return window.times(inverse, v); }, as<T>(x));
    }
}

template <class T>
void put(float value, void* y) {
    store_n(static_cast<T*>(y), set(value), 1);
}

template <Index N>
struct Count {
    static constexpr Index value = N;
};

// Short rows stay in K registers from the first load to the last store.
template <class T, Index K>
void small_rows_of(const T* x, T* y, Index rows, Index n, bool empty_zero) {
    const Index tail = n - (K - 1) * kWidth;
    for (Index r = 0; r < rows; ++r, x += n, y += n) {
        Vec v[K];
        for (Index k = 0; k < K - 1; ++k) v[k] = load(x + k * kWidth);
        v[K - 1] = load_n(x + (K - 1) * kWidth, tail, -kInf);
        Vec top = v[0];
        for (Index k = 1; k < K; ++k) top = max2(v[k], top);
        const float max = reduce_max(top);
        const Window window(reference_for(max, false));
        Vec s = set(0.0f);
        for (Index k = 0; k < K; ++k) s = add(s, v[k] = window(v[k]));
        const float sum = reduce_add(s);
        const Divisor divisor(sum, sum == 0.0f ? (empty_zero ? 0.0f : __builtin_nanf("")) : 1.0f / sum);
        for (Index k = 0; k < K - 1; ++k) store(y + k * kWidth, divisor.divide(v[k]));
        store_n(y + (K - 1) * kWidth, divisor.divide(v[K - 1]), tail);
    }
}

// The logarithms of kWidth rows are taken together: a logarithm costs as much as a whole short row.
template <class T, Index K>
void small_log_rows_of(const T* x, T* y, Index rows, Index n, bool empty_zero) {
    const Index tail = n - (K - 1) * kWidth;
    for (Index start = 0; start < rows; start += kWidth) {
        const Index group = rows - start < kWidth ? rows - start : kWidth;
        float shift[kWidth], sum[kWidth];
        for (Index r = 0; r < kWidth; ++r) shift[r] = 0.0f, sum[r] = 1.0f;
        for (Index r = 0; r < group; ++r) {
            const T* row = x + (start + r) * n;
            Vec v[K];
            for (Index k = 0; k < K - 1; ++k) v[k] = load(row + k * kWidth);
            v[K - 1] = load_n(row + (K - 1) * kWidth, tail, -kInf);
            Vec top = v[0], s = set(0.0f);
            for (Index k = 1; k < K; ++k) top = max2(v[k], top);
            const Reference at = reference_for(reduce_max(top), true);
            const Window window(at);
            for (Index k = 0; k < K; ++k) s = add(s, window(v[k]));
            shift[r] = at.shift;
            sum[r] = reduce_add(s);
        }
        const Vec sums = load(sum), empty = set(empty_zero ? 0.0f : __builtin_nanf(""));
        float logarithm[kWidth];
        store(logarithm, where_equal(sums, set(0.0f), empty, log_of_sum(sums)));
        for (Index r = 0; r < group; ++r) {
            const T* row = x + (start + r) * n;
            const Vec high = set(shift[r]), low = set(logarithm[r]);
            map(y + (start + r) * n, n, false, [=](Vec v) { return sub(sub(v, high), low); }, row);
        }
    }
}

template <class T, Index K>
void small_grad_rows_of(const T* y, const T* dy, T* dx, Index rows, Index n) {
    const Index tail = n - (K - 1) * kWidth;
    for (Index r = 0; r < rows; ++r, y += n, dy += n, dx += n) {
        Vec a[K], b[K], s = set(0.0f);
        for (Index k = 0; k < K; ++k) {
            const Index at = k * kWidth;
            a[k] = k < K - 1 ? load(y + at) : load_n(y + at, tail, 0.0f);
            b[k] = k < K - 1 ? load(dy + at) : load_n(dy + at, tail, 0.0f);
            s = fma(a[k], b[k], s);
        }
        const Vec sum = set(reduce_add(s));
        for (Index k = 0; k < K - 1; ++k) store(dx + k * kWidth, mul(a[k], sub(b[k], sum)));
        store_n(dx + (K - 1) * kWidth, mul(a[K - 1], sub(b[K - 1], sum)), tail);
    }
}

// Calls f with the number of vectors of a short row as a compile-time constant.
template <class F>
inline void with_vectors(Index n, F f) {
    static_assert(kSmallVectors <= 8, "the switch below lists them");
    switch ((n + kWidth - 1) / kWidth) {
        case 1: return f(Count<1>{});
        case 2: return f(Count<2>{});
        case 3: return f(Count<3>{});
        case 4: return f(Count<4>{});
        case 5: return f(Count<5>{});
        case 6: return f(Count<6>{});
        case 7: return f(Count<7>{});
        default: return f(Count<8>{});
    }
}

template <class T>
void small_rows(const void* x, void* y, Index rows, Index n, bool logarithm, bool zero) {
    with_vectors(n, [=](auto count) {
        if (logarithm)
            small_log_rows_of<T, decltype(count)::value>(as<T>(x), static_cast<T*>(y), rows, n, zero);
        else
            small_rows_of<T, decltype(count)::value>(as<T>(x), static_cast<T*>(y), rows, n, zero);
    });
}

template <class T>
void small_grad_rows(const void* y, const void* dy, void* dx, Index rows, Index n) {
    with_vectors(n, [=](auto count) {
        small_grad_rows_of<T, decltype(count)::value>(as<T>(y), as<T>(dy), static_cast<T*>(dx), rows, n);
    });
}

// exp of a log-probability.
inline Vec probability(Vec a) {
    const ExtExp e = bounded_ext_exp(a);
    return scale2(e.p, e.n);
}

// Backward. softmax: dx = y (dy - sum(y dy)); log_softmax: dx = dy - exp(y) sum(dy).
template <class T>
double grad_sum(const void* y, const void* dy, Index n, bool log) {
    const T *a = as<T>(y), *b = as<T>(dy);
    return sum_of_blocks(n, [&](Index start, Index len) {
        if (log) return block_sum(len, [&](Index i, Index k) { return load_lanes(b + start + i, k, 0.0f); });
        return block_sum(len, [&](Index i, Index k) {
            return mul(load_lanes(a + start + i, k, 0.0f), load_lanes(b + start + i, k, 0.0f));
        });
    });
}

template <class T>
void grad_write(const void* y, const void* dy, void* dx, Index n, bool log, float sum, bool past_caches) {
    const Vec s = set(sum);
    T* out = static_cast<T*>(dx);
    if (log)
        map(out, n, past_caches, [=](Vec a, Vec b) { return fnma(probability(a), s, b); }, as<T>(y), as<T>(dy));
    else
        map(out, n, past_caches, [=](Vec a, Vec b) { return mul(a, sub(b, s)); }, as<T>(y), as<T>(dy));
}

// Bandwidth of plain streaming, to set the kernels against.
inline void probe(int kind, const float* a, float* b, Index n) {
    if (kind == 0) {
        b[0] = pass_max<float>(a, n);
    } else {
        map(b, n, kind == 2, [](Vec v) { return v; }, a);
    }
}

}  // namespace
}  // namespace softgate
