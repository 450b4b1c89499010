#include "driver.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "cpu.hpp"
#include "pool.hpp"
#include "rows.hpp"

namespace softgate {
namespace {

int useful_threads(int wanted, Index elements) {
    return int(std::max<Index>(1, std::min<Index>(wanted, elements / kGrain)));
}

// Non-temporal stores pay once the output would sweep the last-level cache anyway.
bool stream_output(Streaming wanted, Index bytes) {
    if (wanted != Streaming::automatic) return wanted == Streaming::on;
    return bytes > machine().llc / 2;
}

template <class Range>
void share_rows(Index rows, int threads, Range range) {
    const int workers = int(std::min<Index>(threads, rows));
    if (workers <= 1) return range(Index(0), rows);
    parallel(workers, [&](int w) { range(rows * w / workers, rows * (w + 1) / workers); });
}

void softmax_columns(const KernelTable& k, Op op, Dtype dtype, const void* x, void* y, Shape s, const Options& options,
                     Algorithm algorithm) {
    const Index width = kTileVectors * k.width, tiles = (s.inner + width - 1) / width, bytes = size_of(dtype);
    const Index out_rows = op == Op::logsumexp ? 1 : s.n;
    share_rows(s.outer * tiles, useful_threads(options.threads, s.size()), [&](Index begin, Index end) {
        for (Index t = begin; t < end; ++t) {
            const Index o = t / tiles, column = (t % tiles) * width;
            const ColumnTile tile{static_cast<const char*>(x) + (o * s.n * s.inner + column) * bytes,
                                  static_cast<char*>(y) + (o * out_rows * s.inner + column) * bytes,
                                  s.n, s.inner, std::min(width, s.inner - column), op, algorithm,
                                  options.empty_zero};
            k.column_tile(tile);
        }
    });
}

}  // namespace

Algorithm choose_algorithm(Op op, Dtype dtype, Shape shape) {
    const Index row_bytes = shape.n * Index(sizeof(float));
    if (shape.inner > 1) {
        const Index tile = row_bytes * kTileVectors * kernels_for(current_isa(), dtype)->width;
        return tile <= machine().l2 / 2 ? Algorithm::reload : Algorithm::online;
    }
    if (op == Op::softmax && row_bytes <= machine().llc / 4) return Algorithm::reload;
    if (op != Op::softmax && row_bytes <= machine().l2 / 4) return Algorithm::recompute;
    return op == Op::log_softmax ? Algorithm::online : Algorithm::two_pass;
}

void run_softmax(Op op, Dtype dtype, const void* x, void* y, Shape s, Options options) {
    if (s.outer == 0 || s.inner == 0 || s.n == 0) return;
    const KernelTable& k = *kernels_for(current_isa(), dtype);
    Algorithm algorithm =
        options.plan == Plan::automatic ? choose_algorithm(op, dtype, s) : Algorithm(int(options.plan));
    // The rounding of a pair's mantissa would show in log-probabilities near 0; the online form has the same traffic.
    if (op == Op::log_softmax && algorithm == Algorithm::two_pass) algorithm = Algorithm::online;
    if (s.n == 1 && op == Op::softmax) s = {s.outer * s.inner, 1, 1};
    if (s.inner > 1) return softmax_columns(k, op, dtype, x, y, s, options, algorithm);
    const int threads = useful_threads(options.threads, s.size());
    const Index bytes = size_of(dtype), row_bytes = s.n * bytes, out_bytes = op == Op::logsumexp ? bytes : row_bytes;
    const char* in = static_cast<const char*>(x);
    char* out = static_cast<char*>(y);
    // A row of one entry is exactly 1 whatever the algorithm.
    const bool small = options.plan == Plan::automatic && s.n <= k.small_limit;
    if ((small && op != Op::logsumexp) || (s.n == 1 && op == Op::softmax)) {
        share_rows(s.outer, threads, [&](Index begin, Index end) {
            k.small_rows(in + begin * row_bytes, out + begin * row_bytes, end - begin, s.n, op == Op::log_softmax,
                         options.empty_zero);
        });
        return;
    }
    // The reload form streams from a scratch row, which pays only while that row stays in the second-level cache.
    const bool reloads = op == Op::softmax && algorithm == Algorithm::reload;
    const bool stream = op != Op::logsumexp && stream_output(options.streaming, s.size() * bytes) &&
                        !(reloads && s.n > kSegment);
    const bool needs_scratch = reloads && (dtype != Dtype::f32 || stream);
    const auto run = [&](Index begin, Index end, int split) {
        const std::unique_ptr<float[]> scratch(needs_scratch ? new float[std::size_t(s.n)] : nullptr);
        const Row row{k, op, dtype, algorithm, s.n, stream, options.empty_zero, scratch.get()};
        for (Index r = begin; r < end; ++r) run_row(row, in + r * row_bytes, out + r * out_bytes, split);
    };
    if (s.outer < threads && s.n > kSegment) return run(0, s.outer, threads);
    share_rows(s.outer, threads, [&](Index begin, Index end) { run(begin, end, 1); });
}

void run_gradient(bool log, Dtype dtype, const void* y, const void* dy, void* dx, Shape s, Options options) {
    if (s.outer == 0 || s.inner == 0 || s.n == 0) return;
    const KernelTable& k = *kernels_for(current_isa(), dtype);
    const int threads = useful_threads(options.threads, s.size());
    const Index bytes = size_of(dtype);
    const char *a = static_cast<const char*>(y), *b = static_cast<const char*>(dy);
    char* out = static_cast<char*>(dx);
    if (s.inner > 1) {
        const Index width = kTileVectors * k.width, tiles = (s.inner + width - 1) / width;
        share_rows(s.outer * tiles, threads, [&](Index begin, Index end) {
            for (Index t = begin; t < end; ++t) {
                const Index column = (t % tiles) * width, offset = (t / tiles * s.n * s.inner + column) * bytes;
                k.column_grad({a + offset, b + offset, out + offset, s.n, s.inner,
                               std::min(width, s.inner - column), log});
            }
        });
        return;
    }
    if (!log && s.n <= k.small_limit) {
        const Index row_bytes = s.n * bytes;
        share_rows(s.outer, threads, [&](Index begin, Index end) {
            const Index offset = begin * row_bytes;
            k.small_grad_rows(a + offset, b + offset, out + offset, end - begin, s.n);
        });
        return;
    }
    const bool stream = stream_output(options.streaming, s.size() * bytes);
    const auto run = [&](Index begin, Index end, int split) {
        for (Index r = begin; r < end; ++r) {
            const Index offset = r * s.n * bytes;
            run_gradient_row(k, log, dtype, a + offset, b + offset, out + offset, s.n, stream, split);
        }
    };
    if (s.outer < threads && s.n > kSegment) return run(0, s.outer, threads);
    share_rows(s.outer, threads, [&](Index begin, Index end) { run(begin, end, 1); });
}

void run_pairs(Dtype dtype, const void* x, float* mantissa, float* exponent, Index rows, Index n, int threads) {
    const KernelTable& k = *kernels_for(current_isa(), dtype);
    const int useful = useful_threads(threads, rows * n);
    const auto run = [&](Index begin, Index end, int split) {
        for (Index r = begin; r < end; ++r) {
            const void* row = static_cast<const char*>(x) + r * n * size_of(dtype);
            const Stats stats = row_stats(k, Algorithm::two_pass, false, dtype, row, n, split);
            const bool empty = stats.sum == 0.0;
            // Sums beyond the range in which a float counts exponents exactly have no pair.
            mantissa[r] = stats.at.shift == 0.0f ? float(stats.sum) : std::nanf("");
            exponent[r] = empty ? -std::numeric_limits<float>::infinity() : stats.at.exponent;
        }
    };
    if (rows < useful && n > kSegment) return run(0, rows, useful);
    share_rows(rows, useful, [&](Index begin, Index end) { run(begin, end, 1); });
}

}  // namespace softgate
