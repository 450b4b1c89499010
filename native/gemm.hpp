// Products of small matrices that are already in the caches: C += A B, where B lies in panels of kPanel neighbouring
// columns (row after row), and A is read entry by entry, so that it may as well be transposed.
// Every entry of C is one chain of fused multiply-adds over the inner index: its bits do not depend on the tiling.
#pragma once

namespace softgate {
namespace {

constexpr Index kPanel = 2 * kWidth;

inline Index round_up(Index n, Index step) { return (n + step - 1) / step * step; }

// GCC leaves short loops over registers rolled up, with the registers in memory.
#if defined(__GNUC__) && !defined(__clang__)
#define SOFTGATE_UNROLL _Pragma("GCC unroll 16")
#else
#define SOFTGATE_UNROLL
#endif

// A transposed: entry (i, k) is a[k * lda + i] instead of a[i * lda + k].
template <int Rows, bool Transposed, bool Add>
inline void strip(Index inner, const float* a, Index lda, const float* b, float* c, Index ldc) {
    Vec left[Rows], right[Rows];
    SOFTGATE_UNROLL
    for (int i = 0; i < Rows; ++i) left[i] = right[i] = set(0.0f);
    for (Index k = 0; k < inner; ++k, b += kPanel) {
        Vec b0 = load(b), b1 = load(b + kWidth);
        hold(b0);
        hold(b1);
        SOFTGATE_UNROLL
        for (int i = 0; i < Rows; ++i) {
            const Vec x = set(Transposed ? a[k * lda + i] : a[i * lda + k]);
            left[i] = fma(x, b0, left[i]);
            right[i] = fma(x, b1, right[i]);
        }
    }
    SOFTGATE_UNROLL
    for (int i = 0; i < Rows; ++i) {
        float* to = c + i * ldc;
        store(to, Add ? add(load(to), left[i]) : left[i]);
        store(to + kWidth, Add ? add(load(to + kWidth), right[i]) : right[i]);
    }
}

// Between 1 and kGemmRows rows.
template <bool Transposed, bool Add, int Rows = int(kGemmRows)>
inline void strip_of(Index rows, Index inner, const float* a, Index lda, const float* b, float* c, Index ldc) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return strip_of<Transposed, Add, Rows - 1>(rows, inner, a, lda, b, c, ldc);
    }
    strip<Rows, Transposed, Add>(inner, a, lda, b, c, ldc);
}

// x (n, d) -> ceil(n / kPanel) panels of x transposed, each (d, kPanel); missing columns are 0.
inline void pack_transposed(const float* x, Index row, Index col, Index n, Index d, float* out) {
    for (Index j = 0; j < n; j += kPanel, out += d * kPanel) {
        const Index have = n - j < kPanel ? n - j : kPanel;
        for (Index i = 0; i < have; ++i) {
            const float* from = x + (j + i) * row;
            for (Index k = 0; k < d; ++k) out[k * kPanel + i] = from[k * col];
        }
        for (Index i = have; i < kPanel; ++i)
            for (Index k = 0; k < d; ++k) out[k * kPanel + i] = 0.0f;
    }
}

// x (n, d) -> ceil(d / kPanel) panels, each (n, kPanel), times factor; missing columns are 0.
inline void pack_panels(const float* x, Index row, Index col, Index n, Index d, float* out) {
    for (Index k = 0; k < d; k += kPanel) {
        const Index have = d - k < kPanel ? d - k : kPanel;
        for (Index i = 0; i < n; ++i, out += kPanel) {
            const float* from = x + i * row + k * col;
            for (Index c = 0; c < have; ++c) out[c] = from[c * col];
            for (Index c = have; c < kPanel; ++c) out[c] = 0.0f;
        }
    }
}

// x (n, d) -> contiguous rows, row i times factor[i].
inline void pack_rows(const float* x, Index row, Index col, Index n, Index d, const float* factor, float* out) {
    for (Index i = 0; i < n; ++i, out += d)
        for (Index k = 0; k < d; ++k) out[k] = x[i * row + k * col] * factor[i];
}

}  // namespace
}  // namespace softgate
