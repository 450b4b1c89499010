// Feed-forward experts: products of few rows, which only read the matrices once, and of many, in blocks; the SwiGLU gate
// in one pass.
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
    // (rows, inputs), (rows, outputs), (experts, outputs, inputs), (experts, outputs) or null, all of one type; sums
    // are made in float.
    void *x = nullptr, *y = nullptr, *w = nullptr;
    const void* bias = nullptr;
    Dtype dtype = Dtype::f32;
    Index inputs = 0, outputs = 0, x_stride = 0, y_stride = 0;
    int threads = 1;
};

// a = silu(gate) * up with h = [gate, up]. With da, the gradient of w a: the gradients of gate and up, that of w, and w a.
struct SwiGlu {
    const void *h = nullptr, *da = nullptr;
    void *a = nullptr, *dh = nullptr;
    const float* w = nullptr;
    float* dw = nullptr;
    Dtype dtype = Dtype::f32;
    Index rows = 0, features = 0, h_stride = 0, a_stride = 0, da_stride = 0, dh_stride = 0;
    int threads = 1;
};

struct ExpertKernels {
    // first and last: which outputs, but of input_grad which inputs.
    void (*rows)(const ExpertRows&, const std::int64_t* segment, Index first, Index last);
    void (*gate)(const SwiGlu&, Index row);
    void (*gate_backward)(const SwiGlu&, Index row);
};

ExpertKernels scalar_experts(Dtype);
ExpertKernels avx2_experts(Dtype);
ExpertKernels avx512_experts(Dtype);

void expert_rows(const ExpertRows&);
void swiglu(const SwiGlu&);

}  // namespace softgate
