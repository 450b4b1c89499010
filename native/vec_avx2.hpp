// Eight float lanes. Needs AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"

namespace softgate {
namespace {  // internal linkage: the linker must never merge this with code built for another instruction set

using Vec = __m256;
constexpr Index kWidth = 8;
constexpr Index kSmallVectors = 8;
constexpr Index kGemmRows = 6;  // 12 sums, 2 factors and a broadcast fill the 16 registers
constexpr Isa kIsa = Isa::avx2;

alignas(64) constexpr std::int32_t kLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

inline __m256i first(Index n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes + 8 - n)); }

// Makes the compiler hold a in a register: it would rather load it again for every product.
inline void hold(Vec& a) {
#if defined(__GNUC__)
    __asm__("" : "+x"(a));
#else
    (void)a;
#endif
}

inline Vec set(float a) { return _mm256_set1_ps(a); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
// Returns b when either operand is NaN: max2(x, acc) skips NaN, max2(limit, x) keeps it.
inline Vec max2(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min2(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec negative_abs(Vec a) { return _mm256_or_ps(a, set(-0.0f)); }
inline Vec count_up() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
// To float, where the lanes of a vector are wider.
inline Vec rounded(Vec a) { return a; }
inline Vec round_even(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// p * 2^d for d <= 0 (or NaN, as in -inf - -inf: then 0): results below 2^-126 become 0.
inline Vec scale2(Vec p, Vec d) {
    const Vec biased = _mm256_add_ps(_mm256_max_ps(d, set(-127.0f)), set(0x1.8000FEp23f));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23)));
}
// Lanes where a == b take yes, the others no.
inline Vec where_equal(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
// Lanes where a < b take yes; the others, with NaN, no.
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline bool any_less(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0; }
inline bool any_nan(Vec a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }

inline Vec widen(__m128i bits, bf16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec widen(__m128i bits, f16) { return _mm256_cvtph_ps(bits); }

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
template <class Half>
inline Vec load(const Half* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), Half{});
}

// The first n lanes from memory, the others hold fill; nothing beyond p[n - 1] is touched.
inline Vec load_n(const float* p, Index n, float fill) {
    return _mm256_blendv_ps(set(fill), _mm256_maskload_ps(p, first(n)), _mm256_castsi256_ps(first(n)));
}
template <class Half>
inline Vec load_n(const Half* p, Index n, float fill) {
    Half lanes[8] = {};
    for (Index i = 0; i < n; ++i) lanes[i] = p[i];
    return _mm256_blendv_ps(set(fill), load(lanes), _mm256_castsi256_ps(first(n)));
}

inline __m128i narrow(Vec a, f16) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline __m128i narrow(Vec a, bf16) {  // round to nearest even
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i safe = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
    const __m256i high = _mm256_srli_epi32(safe, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
template <class Half>
inline void store(Half* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, Half{}));
}
inline void store_n(float* p, Vec a, Index n) { _mm256_maskstore_ps(p, first(n), a); }
template <class Half>
inline void store_n(Half* p, Vec a, Index n) {
    Half lanes[8];
    store(lanes, a);
    for (Index i = 0; i < n; ++i) p[i] = lanes[i];
}
// Past the caches; p is aligned to a whole vector of its type.
inline void stream(float* p, Vec a) { _mm256_stream_ps(p, a); }
template <class Half>
inline void stream(Half* p, Vec a) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(a, Half{}));
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// Into the second-level cache only.
inline void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

// log(a) for a >= 1 to 0.06: the exponent and mantissa bits read as one number.
inline Vec log_guess(Vec a) {
    const __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(0x3f800000));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(bits), set(0x1.62E43p-24f));
}

// Rows become columns.
inline void transpose(Vec (&x)[kWidth]) {
    Vec pairs[kWidth], fours[kWidth];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], _MM_SHUFFLE(1, 0, 1, 0));
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], _MM_SHUFFLE(3, 2, 3, 2));
        }
    for (int i = 0; i < 4; ++i) {
        x[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        x[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

inline float reduce_max(Vec a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline float reduce_add(Vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline double sum_double(Vec a) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    const __m256d s = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
}

}  // namespace
}  // namespace softgate
