// ExtExp of the paper: exp(x) = p * 2^n with n an integer held in a float and p in about [0.707, 1.414].
// Written on the vector operations of the instruction set that includes it.
#pragma once

namespace softgate {
namespace {

constexpr float kLog2e = 0x1.715476p+0f;
constexpr float kLn2Hi = 0x1.62E43p-1f;     // few enough bits for n * kLn2Hi to be exact
constexpr float kLn2Lo = -0x1.05C61p-29f;   // ln 2 - kLn2Hi

struct ExtExp {
    Vec p;
    Vec n;
};

inline ExtExp ext_exp(Vec x) {
    const Vec n = round_even(mul(x, set(kLog2e)));
    Vec t = fnma(n, set(kLn2Hi), x);
    t = fnma(n, set(kLn2Lo), t);
    // Minimax, relative error 3e-9; one degree more than the paper's, whose 9e-8 alone would be 1.5 units of rounding.
    Vec p = fma(t, set(0x1.6A23CEp-10f), set(0x1.123A20p-7f));
    p = fma(p, t, set(0x1.5558F2p-5f));
    p = fma(p, t, set(0x1.555492p-3f));
    p = fma(p, t, set(0x1.FFFFFCp-2f));
    p = fma(p, t, set(1.0f));
    return {fma(p, t, set(1.0f)), n};
}

// ExtExp with -inf (and everything below the range of n) at the bottom of that range; NaN stays NaN.
inline ExtExp bounded_ext_exp(Vec x) { return ext_exp(max2(set(kLowest), x)); }

// log(s) for s >= 1: two steps of Halley's method on exp(y) = s, each of which cubes the error.
inline Vec log_of_sum(Vec s) {
    Vec y = log_guess(s);
    for (int step = 0; step < 2; ++step) {
        const ExtExp e = ext_exp(y);
        const Vec power = mul(e.p, div(set(1.0f), scale2(set(1.0f), sub(set(0.0f), e.n))));
        y = add(y, div(mul(set(2.0f), sub(s, power)), add(s, power)));
    }
    return y;
}

// Division by a sum through its reciprocal and one correction, as exact as a division: an entry that is the whole sum
// gives exactly 1.
struct Divisor {
    Vec sum, inverse;

    Divisor() = default;
    Divisor(float s, float i) : sum(set(s)), inverse(set(i)) {}
    Divisor(Vec s, Vec i) : sum(s), inverse(i) {}

    Vec divide(Vec a) const {
        const Vec q = mul(a, inverse);
        return fma(fnma(q, sum, a), inverse, q);
    }
};

// Exponentials relative to one reference; 0 for -inf.
struct Window {
    Vec shift, exponent;

    explicit Window(Reference at) : shift(set(at.shift)), exponent(set(at.exponent)) {}
    Window(Vec s, Vec e) : shift(s), exponent(e) {}

    Vec operator()(Vec x) const {
        const ExtExp e = bounded_ext_exp(sub(x, shift));
        return scale2(e.p, sub(e.n, exponent));
    }
    // Here a product with the reciprocal is enough: it is at most one unit off, and never above 1.
    Vec times(Vec inverse, Vec x) const {
        const ExtExp e = bounded_ext_exp(sub(x, shift));
        return scale2(mul(e.p, inverse), sub(e.n, exponent));
    }
};

}  // namespace
}  // namespace softgate
