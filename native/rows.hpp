// One contiguous row, on one thread or split over several.
#pragma once

#include "driver.hpp"

namespace softgate {

struct Row {
    const KernelTable& k;
    Op op;
    Dtype dtype;
    Algorithm algorithm;
    Index n;
    bool stream;
    bool empty_zero;
    float* scratch;  // n floats for the reload form when it cannot use the output, else null
};

// Runs one row; with threads > 1 its segments are shared out. Bits do not depend on threads.
void run_row(const Row& row, const void* x, void* y, int threads);

// Stats of a whole row in the requested form, falling back from pairs to the online form outside their range.
Stats row_stats(const KernelTable& k, Algorithm algorithm, bool logarithm, Dtype dtype, const void* x, Index n,
                int threads);

void run_gradient_row(const KernelTable& k, bool log, Dtype dtype, const void* y, const void* dy, void* dx, Index n,
                      bool stream, int threads);

// log(sum exp) of the stats; NaN for a row with NaN, +-inf as torch.logsumexp.
double log_sum(const Stats& stats);

}  // namespace softgate
