// A block of logits (rows, classes) of a linear layer and its loss, worked on in place: statistics of its rows, then the
// gradient where the logits were. Rows are independent; the products around it are the caller's.
#pragma once

#include "kernels.hpp"

namespace softgate {

// Numbers of all rows, one array per statistic. top: largest score but the target's; total: sum over the others of
// exp(score - top), or the squared hinges; spread: sum of smoothing weight times score over the others; own: the
// target's score.
struct RowStats {
    double *top, *total, *spread, *own;
};

struct Vocabulary {
    float* z = nullptr;
    Index rows = 0, classes = 0, stride = 0;
    const std::int64_t* target = nullptr;  // (rows,), -1: not among these classes
    const float* bias = nullptr;           // (classes,) or null
    const float* spread = nullptr;         // (classes,) smoothing weights, or null
    float even_spread = 0.0f;              // one for all classes; 0: none
    float softcap = 0.0f;                  // 0: none
    float temperature = 1.0f;
    bool compressed = false;  // StableMax: scores are g(z), g(z) = sign(z) log(1 + |z|); without smoothing only
    RowStats stats{};
    const double *top = nullptr, *scale = nullptr, *constant = nullptr, *at_target = nullptr;  // hinge: scale only
    int threads = 1;
};

// Which sweep: logits to scores and statistics; scores to (scale exp(score - top) - constant spread) d score / d z, and
// at_target at the target; logits to scale times the gradient of the squared hinge, and statistics.
enum class Sweep : int { scan, slopes, hinge };

using RowSweep = void (*)(const Vocabulary&, Sweep, Index row);

RowSweep scalar_vocabulary();
RowSweep avx2_vocabulary();
RowSweep avx512_vocabulary();

void sweep(const Vocabulary&, Sweep);

}  // namespace softgate
