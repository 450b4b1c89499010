// What every instruction set offers, as a table of functions over contiguous pieces of a row ("segments") or over
// tiles of neighbouring columns. Everything that does not depend on the instruction set (merging segments, special
// rows, threads, the choice of algorithm) is written once, in rows.cpp, columns.cpp and driver.cpp, on top of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace softgate {

using Index = std::ptrdiff_t;

enum class Dtype : int { f32, bf16, f16 };
enum class Algorithm : int { two_pass, recompute, reload, online };
enum class Op : int { softmax, log_softmax, logsumexp };
enum class Isa : int { scalar, avx2, avx512 };

struct bf16 { std::uint16_t bits; };
struct f16 { std::uint16_t bits; };

inline Index size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// What exponentials are taken relative to: e^shift * 2^exponent. An integral exponent costs no accuracy, because
// exp(x) = p * 2^n is formed from x itself; subtracting a maximum first would round x - max, which is worth 10 ULP at
// exp(-20). Only where a float is too coarse for n is the maximum subtracted, and there the difference is exact.
struct Reference {
    float shift;
    float exponent;
};

// Sum of exponentials of a piece, sum * e^shift * 2^exponent. A piece with nothing but -inf has the sum 0, one with NaN
// or +inf the sum NaN.
struct Stats {
    double sum;
    Reference at;
    float max;  // of the piece without NaN; not known (NaN) to pair_stats
};

// How a row is written once its stats are known.
//   softmax:      y = exp(x) / (e^shift 2^exponent) / sum
//   log_softmax:  y = (x - high) - low, the log-sum-exp being high + low
struct Finish {
    bool log;
    Reference at;
    float sum, inverse;
    float high, low;
};

// Beyond this exponent x / ln 2 is rounded so coarsely that t leaves the polynomial's range: such rows take the online
// form. Up to 2^22 a float still holds n and its neighbours as exact integers.
constexpr float kPairLimit = 2097152.0f;           // 2^21
constexpr float kLowest = -2907270.0f;             // about -2^22 ln 2: smaller x, and -inf, are treated as this
constexpr float kLowestExponent = -4194304.0f;     // of kLowest
constexpr float kShiftFrom = 32768.0f;             // maxima beyond this are subtracted, see Reference
constexpr Index kBlock = 1024;     // float partial sums live this long, then they are folded into a double
constexpr Index kSegment = 65536;  // unit of work inside a long row; fixed, so that results do not depend on threads
constexpr Index kTileVectors = 4;  // columns are processed in tiles of this many vectors

inline float round_to_integer(float a) { return (a + 12582912.0f) - 12582912.0f; }  // |a| < 2^22, ties to even

// For a logarithm the maximum is always subtracted: its term is then exactly 1, so that log-probabilities near 0 are
// right relative to their own size, while the rounding of x - max only touches terms that hardly count.
inline Reference reference_for(float max, bool logarithm) {
    if (!logarithm && max > -kShiftFrom && max < kShiftFrom) return {0.0f, round_to_integer(max * 1.44269504f)};
    // With nothing but -inf any finite reference gives the sum 0, and NaN entries still show in it.
    return {max == -__builtin_inff() ? 0.0f : max, 0.0f};
}

struct ColumnTile {
    const void* x;
    void* y;           // softmax and log_softmax: like x; logsumexp: one row of values
    Index n, stride;   // entries per column, elements between them
    Index columns;     // at most kTileVectors * width
    Op op;
    Algorithm algorithm;
    bool empty_zero;
};

struct ColumnGradTile {
    const void* y;
    const void* dy;
    void* dx;
    Index n, stride, columns;
    bool log;
};

struct KernelTable {
    Isa isa;
    Index width;        // floats per vector
    Index small_limit;  // rows up to this length are held in registers by small_rows
    float (*max)(const void* x, Index n);                             // NaN is ignored; -inf for n = 0
    bool (*has_nan)(const void* x, Index n);
    Stats (*pair_stats)(const void* x, Index n);
    Stats (*online_stats)(const void* x, Index n, bool logarithm);
    double (*exp_sum)(const void* x, Index n, Reference at);              // sum of exponentials
    double (*exp_store)(const void* x, float* e, Index n, Reference at);  // also stores them
    void (*divide)(const float* e, void* y, Index n, const Finish&, bool stream);
    void (*write)(const void* x, void* y, Index n, const Finish&, bool stream);
    void (*put)(float value, void* y);  // one entry, rounded to the data type
    void (*small_rows)(const void* x, void* y, Index rows, Index n, bool logarithm, bool empty_zero);
    void (*small_grad_rows)(const void* y, const void* dy, void* dx, Index rows, Index n);  // of softmax
    void (*column_tile)(const ColumnTile&);
    double (*grad_sum)(const void* y, const void* dy, Index n, bool log);  // sum y dy, or sum dy if log
    void (*grad_write)(const void* y, const void* dy, void* dx, Index n, bool log, float sum, bool stream);
    void (*column_grad)(const ColumnGradTile&);
    void (*probe)(int kind, const float* a, float* b, Index n);        // 0 read, 1 copy, 2 non-temporal copy
};

// Null when the instruction set was not compiled in.
const KernelTable* scalar_kernels(Dtype);
const KernelTable* avx2_kernels(Dtype);
const KernelTable* avx512_kernels(Dtype);

}  // namespace softgate
