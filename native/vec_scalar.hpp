// Portable lanes without intrinsics. They hold doubles: without fused multiply-add this is the simple way to an exact
// range reduction, and the compiler still vectorises the loops for whatever the baseline is.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace softgate {
namespace {

constexpr Index kWidth = 8;
constexpr Index kSmallVectors = 4;
constexpr Index kGemmRows = 2;
constexpr Isa kIsa = Isa::scalar;

struct Vec {
    double lane[kWidth];
};

template <class F>
inline Vec each(F f) {
    Vec out;
    for (Index i = 0; i < kWidth; ++i) out.lane[i] = f(i);
    return out;
}

inline double from_bits(std::uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float float_from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline std::uint32_t float_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline void hold(Vec&) {}

inline Vec set(float a) { return each([&](Index) { return double(a); }); }
inline Vec add(const Vec& a, const Vec& b) { return each([&](Index i) { return a.lane[i] + b.lane[i]; }); }
inline Vec sub(const Vec& a, const Vec& b) { return each([&](Index i) { return a.lane[i] - b.lane[i]; }); }
inline Vec mul(const Vec& a, const Vec& b) { return each([&](Index i) { return a.lane[i] * b.lane[i]; }); }
inline Vec div(const Vec& a, const Vec& b) { return each([&](Index i) { return a.lane[i] / b.lane[i]; }); }
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](Index i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Vec fnma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](Index i) { return c.lane[i] - a.lane[i] * b.lane[i]; });
}
// Returns b when either operand is NaN: max2(x, acc) skips NaN, max2(limit, x) keeps it.
inline Vec max2(const Vec& a, const Vec& b) {
    return each([&](Index i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min2(const Vec& a, const Vec& b) {
    return each([&](Index i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec negative_abs(const Vec& a) {
    return each([&](Index i) { return -std::fabs(a.lane[i]); });
}
inline Vec count_up() {
    return each([](Index i) { return double(i); });
}
// Ties to even by the magic addend; |a| stays far below 2^51 or is not finite.
// To float, where the lanes of a vector are wider.
inline Vec rounded(const Vec& a) { return each([&](Index i) { return double(float(a.lane[i])); }); }
inline Vec round_even(const Vec& a) {
    constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    return each([&](Index i) { return (a.lane[i] + magic) - magic; });
}
// p * 2^d for d <= 0 (or NaN, as in -inf - -inf: then 0).
inline Vec scale2(const Vec& p, const Vec& d) {
    return each([&](Index i) {
        const double bounded = d.lane[i] > -1022.0 ? d.lane[i] : -1023.0;
        return p.lane[i] * from_bits(std::uint64_t(std::int64_t(bounded) + 1023) << 52);
    });
}
inline Vec where_equal(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
    return each([&](Index i) { return a.lane[i] == b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
// Lanes where a < b take yes; the others, with NaN, no.
inline Vec where_less(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
    return each([&](Index i) { return a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i]; });
}
inline bool any_less(const Vec& a, const Vec& b) {
    bool any = false;
    for (Index i = 0; i < kWidth; ++i) any |= a.lane[i] < b.lane[i];
    return any;
}
inline bool any_nan(const Vec& a) {
    bool found = false;
    for (double v : a.lane) found |= v != v;
    return found;
}

inline float widen(float a) { return a; }
inline float widen(bf16 a) { return float_from_bits(std::uint32_t(a.bits) << 16); }
inline float widen(f16 a) {
    const std::uint32_t sign = std::uint32_t(a.bits & 0x8000u) << 16;
    const std::uint32_t rest = a.bits & 0x7fffu;
    if (rest >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
    const float magnitude = float_from_bits(rest << 13) * 0x1p112f;  // exact for normal and subnormal halves
    return float_from_bits(sign | float_bits(magnitude));
}
inline void narrow(double a, float& out) { out = float(a); }
inline void narrow(double a, bf16& out) {
    const std::uint32_t bits = float_bits(float(a));
    out.bits = a != a ? 0x7fc0u : std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void narrow(double a, f16& out) {
    const std::uint32_t bits = float_bits(float(a));
    const std::uint16_t sign = std::uint16_t((bits >> 16) & 0x8000u);
    const float magnitude = float_from_bits(bits & 0x7fffffffu);
    if (a != a) {
        out.bits = 0x7e00u;
    } else if (magnitude >= 65520.0f) {
        out.bits = sign | 0x7c00u;
    } else if (magnitude < 0x1p-14f) {  // subnormal half: the addend's last place is the unit 2^-24
        out.bits = std::uint16_t(sign | (float_bits(magnitude + 0.5f) - 0x3f000000u));
    } else {
        const std::uint32_t value = float_bits(magnitude);
        out.bits = std::uint16_t(sign | ((value - 0x38000000u + 0xfffu + ((value >> 13) & 1u)) >> 13));
    }
}

template <class T>
inline Vec load_n(const T* p, Index n, float fill) {
    return each([&](Index i) { return i < n ? widen(p[i]) : fill; });
}
template <class T>
inline Vec load(const T* p) {
    return each([&](Index i) { return widen(p[i]); });
}
template <class T>
inline void store_n(T* p, const Vec& a, Index n) {
    for (Index i = 0; i < n; ++i) narrow(a.lane[i], p[i]);
}
template <class T>
inline void store(T* p, const Vec& a) {
    store_n(p, a, kWidth);
}
template <class T>
inline void stream(T* p, const Vec& a) {
    store_n(p, a, kWidth);
}
inline void stream_fence() {}
inline void prefetch(const void*) {}

inline Vec log_guess(const Vec& a) {
    return each([&](Index i) { return std::log(a.lane[i]); });
}

inline float reduce_max(const Vec& a) {
    double m = a.lane[0];
    for (double v : a.lane) m = v > m ? v : m;
    return float(m);
}
inline double sum_double(const Vec& a) {
    double s = 0;
    for (double v : a.lane) s += v;
    return s;
}
inline float reduce_add(const Vec& a) { return float(sum_double(a)); }

}  // namespace
}  // namespace softgate
