// Sixteen float lanes. Needs F, BW, VL and DQ.
#pragma once

#include <immintrin.h>

#include "kernels.hpp"

namespace softgate {
namespace {  // internal linkage: the linker must never merge this with code built for another instruction set

using Vec = __m512;
constexpr Index kWidth = 16;
constexpr Index kSmallVectors = 8;
constexpr Index kGemmRows = 12;  // 24 sums, 2 factors and a broadcast leave 5 of the 32 registers
constexpr Isa kIsa = Isa::avx512;

inline __mmask16 first(Index n) { return static_cast<__mmask16>((1u << n) - 1u); }

// Makes the compiler hold a in a register: it would rather load it again for every product.
inline void hold(Vec& a) {
#if defined(__GNUC__)
    __asm__("" : "+v"(a));
#else
    (void)a;
#endif
}

inline Vec set(float a) { return _mm512_set1_ps(a); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
// Returns b when either operand is NaN: max2(x, acc) skips NaN, max2(limit, x) keeps it.
inline Vec max2(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min2(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec negative_abs(Vec a) { return _mm512_or_ps(a, set(-0.0f)); }
inline Vec count_up() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
// To float, where the lanes of a vector are wider.
inline Vec rounded(Vec a) { return a; }
inline Vec round_even(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// p * 2^d with gradual underflow, for any d including -inf.
inline Vec scale2(Vec p, Vec d) { return _mm512_scalef_ps(p, d); }
// Lanes where a == b take yes, the others no.
inline Vec where_equal(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes);
}
// Lanes where a < b take yes; the others, with NaN, no.
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline bool any_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
inline bool any_nan(Vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Vec widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// The first n lanes from memory, the others hold fill; nothing beyond p[n - 1] is touched.
inline Vec load_n(const float* p, Index n, float fill) { return _mm512_mask_loadu_ps(set(fill), first(n), p); }
inline Vec load_n(const f16* p, Index n, float fill) {
    return _mm512_mask_blend_ps(first(n), set(fill), _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)));
}
inline Vec load_n(const bf16* p, Index n, float fill) {
    return _mm512_mask_blend_ps(first(n), set(fill), widen(_mm256_maskz_loadu_epi16(first(n), p)));
}

inline __m256i narrow_f16(Vec a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Round to nearest even; the hardware conversion (AVX512_BF16) would flush subnormals.
inline __m256i narrow_bf16(Vec a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i safe = _mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(safe, 16));
}

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline void store(f16* p, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(a)); }
inline void store(bf16* p, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a)); }
inline void store_n(float* p, Vec a, Index n) { _mm512_mask_storeu_ps(p, first(n), a); }
inline void store_n(f16* p, Vec a, Index n) { _mm256_mask_storeu_epi16(p, first(n), narrow_f16(a)); }
inline void store_n(bf16* p, Vec a, Index n) { _mm256_mask_storeu_epi16(p, first(n), narrow_bf16(a)); }
// Past the caches; p is aligned to a whole vector of its type.
inline void stream(float* p, Vec a) { _mm512_stream_ps(p, a); }
inline void stream(f16* p, Vec a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow_f16(a)); }
inline void stream(bf16* p, Vec a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a)); }
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// log(a) for a >= 1 to 0.06: the exponent and mantissa bits read as one number.
inline Vec log_guess(Vec a) {
    const __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x3f800000));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(bits), set(0x1.62E43p-24f));
}

inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a); }
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a); }
inline double sum_double(Vec a) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

}  // namespace
}  // namespace softgate
