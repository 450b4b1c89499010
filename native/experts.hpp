// Feed-forward experts with few rows each: products that only read the matrices once, and the SwiGLU gate in one pass.
#pragma once

#include "kernels.hpp"

namespace softgate {

// The three products of the rows of each segment with the matrix of its expert.
enum class RowProduct : int {
    forward,      // y[r] = W x[r] + bias
    input_grad,   // x[r] = W' y[r]
    weight_grad,  // W = sum over r of y[r] x[r]', or W += it
};

struct ExpertRows {
    RowProduct kind = RowProduct::forward;
    const std::int64_t* segments = nullptr;  // (count, 4): expert, first row, row after the last, whether to add to W
    Index count = 0;
    float *x = nullptr, *y = nullptr, *w = nullptr;  // (rows, inputs), (rows, outputs), (experts, outputs, inputs)
    const float* bias = nullptr;                     // (experts, outputs) or null
    Index inputs = 0, outputs = 0, x_stride = 0, y_stride = 0;
    int threads = 1;
};

// a = silu(gate) * up with h = [gate, up]; with da, the gradients of gate and up instead.
struct SwiGlu {
    const float *h = nullptr, *da = nullptr;
    float *a = nullptr, *dh = nullptr;
    Index rows = 0, features = 0, h_stride = 0, a_stride = 0, da_stride = 0, dh_stride = 0;
    int threads = 1;
};

struct ExpertKernels {
    // first and last: which outputs, but of input_grad which inputs.
    void (*rows)(const ExpertRows&, const std::int64_t* segment, Index first, Index last);
    void (*gate)(const SwiGlu&, Index row);
    void (*gate_backward)(const SwiGlu&, Index row);
};

ExpertKernels scalar_experts();
ExpertKernels avx2_experts();
ExpertKernels avx512_experts();

void expert_rows(const ExpertRows&);
void swiglu(const SwiGlu&);

}  // namespace softgate
