#include "rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pool.hpp"

namespace softgate {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kLn2 = 0.693147180559945309417;

const char* at(const void* p, Index i, Dtype dtype) { return static_cast<const char*>(p) + i * size_of(dtype); }
char* at(void* p, Index i, Dtype dtype) { return static_cast<char*>(p) + i * size_of(dtype); }

Index segments(Index n) { return (n + kSegment - 1) / kSegment; }

// work(start, length, index) over all segments, in contiguous shares; in reverse order within a share if asked, so that
// a pass begins with what the pass before it left in the caches.
template <class Work>
void over_segments(Index n, int threads, bool reverse, Work work) {
    const Index count = segments(n);
    const auto share = [&](Index begin, Index end) {
        for (Index j = begin; j < end; ++j) {
            const Index i = reverse ? end - 1 - (j - begin) : j;
            work(i * kSegment, std::min(kSegment, n - i * kSegment), i);
        }
    };
    const int workers = int(std::min<Index>(threads, count));
    if (workers <= 1) return share(0, count);
    parallel(workers, [&](int w) { share(count * w / workers, count * (w + 1) / workers); });
}

// Sums of segments, added in the order of the segments.
template <class Sum>
double ordered_sum(Index n, int threads, bool reverse, Sum sum) {
    if (n <= kSegment) return sum(0, n);
    std::vector<double> partial(std::size_t(segments(n)));
    over_segments(n, threads, reverse, [&](Index i, Index len, Index s) { partial[std::size_t(s)] = sum(i, len); });
    double total = 0;
    for (double p : partial) total += p;
    return total;
}

// sum of b in the unit of a.
double in_unit_of(const Stats& a, const Stats& b) {
    const double exponent = double(b.at.exponent) - double(a.at.exponent);
    if (a.at.shift == b.at.shift) return b.sum * std::exp2(exponent);
    return b.sum * std::exp2(exponent + (double(b.at.shift) - double(a.at.shift)) / kLn2);
}

double size_of_unit(const Stats& a) { return double(a.at.exponent) * kLn2 + double(a.at.shift); }

Stats merge(const Stats& a, const Stats& b) {
    if (a.sum == 0.0) return b;
    if (b.sum == 0.0) return a;
    Stats top = size_of_unit(a) >= size_of_unit(b) ? a : b;
    top.sum = in_unit_of(top, a) + in_unit_of(top, b);
    top.max = std::max(a.max, b.max);
    return top;
}

template <class Piece>
Stats merged_stats(Dtype dtype, const void* x, Index n, int threads, Piece piece) {
    if (n <= kSegment) return piece(x, n);
    std::vector<Stats> partial(std::size_t(segments(n)));
    over_segments(n, threads, false,
                  [&](Index i, Index len, Index s) { partial[std::size_t(s)] = piece(at(x, i, dtype), len); });
    Stats total = partial[0];
    for (std::size_t s = 1; s < partial.size(); ++s) total = merge(total, partial[s]);
    return total;
}

float row_max(const KernelTable& k, Dtype dtype, const void* x, Index n, int threads) {
    if (n <= kSegment) return k.max(x, n);
    std::vector<float> partial(std::size_t(segments(n)));
    over_segments(n, threads, false,
                  [&](Index i, Index len, Index s) { partial[std::size_t(s)] = k.max(at(x, i, dtype), len); });
    return *std::max_element(partial.begin(), partial.end());
}

bool row_has_nan(const KernelTable& k, Dtype dtype, const void* x, Index n) {
    for (Index i = 0; i < n; i += kSegment)
        if (k.has_nan(at(x, i, dtype), std::min(kSegment, n - i))) return true;
    return false;
}

Finish finish(const Row& row, const Stats& stats) {
    const bool empty = stats.sum == 0.0;
    if (row.op == Op::softmax) {
        const float inverse = empty ? (row.empty_zero ? 0.0f : kNan) : float(1.0 / stats.sum);
        return {false, stats.at, float(stats.sum), inverse, 0.0f, 0.0f};
    }
    double lse = log_sum(stats);
    if (empty) lse = row.empty_zero ? 0.0 : double(kNan);  // -inf - 0: the logarithm of a zero
    const float high = float(lse);
    return {true, stats.at, 0.0f, 0.0f, high, float(lse - double(high))};
}

void reload_row(const Row& row, const void* x, void* y, int threads) {
    float* e = row.scratch ? row.scratch : static_cast<float*>(y);
    const Reference reference = reference_for(row_max(row.k, row.dtype, x, row.n, threads), false);
    const double sum = ordered_sum(row.n, threads, true, [&](Index i, Index len) {
        return row.k.exp_store(at(x, i, row.dtype), e + i, len, reference);
    });
    const Finish how = finish(row, {sum, reference, kNan});
    over_segments(row.n, threads, false, [&](Index i, Index len, Index) {
        row.k.divide(e + i, at(y, i, row.dtype), len, how, row.stream);
    });
}

}  // namespace

double log_sum(const Stats& stats) {
    if (stats.sum == 0.0) return -double(kInf);
    return std::log(stats.sum) + double(stats.at.exponent) * kLn2 + double(stats.at.shift);
}

Stats row_stats(const KernelTable& k, Algorithm algorithm, bool logarithm, Dtype dtype, const void* x, Index n,
                int threads) {
    if (algorithm == Algorithm::two_pass) {
        const Stats pairs = merged_stats(dtype, x, n, threads, k.pair_stats);
        if (pairs.at.exponent < kPairLimit && pairs.at.exponent > -kPairLimit) return pairs;
    }
    if (algorithm == Algorithm::two_pass || algorithm == Algorithm::online)
        return merged_stats(dtype, x, n, threads, [&](const void* p, Index len) {
            return k.online_stats(p, len, logarithm);
        });
    const float max = row_max(k, dtype, x, n, threads);
    const Reference reference = reference_for(max, logarithm);
    const double sum = ordered_sum(n, threads, true, [&](Index i, Index len) {
        return k.exp_sum(at(x, i, dtype), len, reference);
    });
    return {sum, reference, max};
}

void run_row(const Row& row, const void* x, void* y, int threads) {
    if (row.op == Op::softmax && row.algorithm == Algorithm::reload) return reload_row(row, x, y, threads);
    const Stats stats = row_stats(row.k, row.algorithm, row.op != Op::softmax, row.dtype, x, row.n, threads);
    if (row.op == Op::logsumexp) {
        float lse = float(log_sum(stats));
        // A row with +inf has the sum NaN (inf - inf); only a NaN entry makes the value NaN.
        if (stats.at.shift == kInf && !row_has_nan(row.k, row.dtype, x, row.n)) lse = kInf;
        return row.k.put(lse, y);
    }
    const Finish how = finish(row, stats);
    over_segments(row.n, threads, true, [&](Index i, Index len, Index) {
        row.k.write(at(x, i, row.dtype), at(y, i, row.dtype), len, how, row.stream);
    });
}

void run_gradient_row(const KernelTable& k, bool log, Dtype dtype, const void* y, const void* dy, void* dx, Index n,
                      bool stream, int threads) {
    const float sum = float(ordered_sum(n, threads, false, [&](Index i, Index len) {
        return k.grad_sum(at(y, i, dtype), at(dy, i, dtype), len, log);
    }));
    over_segments(n, threads, true, [&](Index i, Index len, Index) {
        k.grad_write(at(y, i, dtype), at(dy, i, dtype), at(dx, i, dtype), len, log, sum, stream);
    });
}

}  // namespace softgate
