// Activations in one pass over the data, in all three data types.
#pragma once

#include "kernels.hpp"

namespace softgate {

// y = max(0, x) + eps x exp(-x²/2); with dy, the gradients of x and of eps instead.
struct Crrelu {
    const void *x = nullptr, *dy = nullptr;
    void *y = nullptr, *dx = nullptr;  // dx may be null
    double* sums = nullptr;            // (blocks): the gradient of eps, entry by entry of a block; may be null
    float eps = 0.0f;
    Index entries = 0, block = 4096;
    int threads = 1;
};

// Spiking neurons over steps: u = decay v + gain x, s = [u >= threshold], and v is u without what the spike takes away:
// all of it, or the threshold if soft. With ds, the gradients of x and of the first v instead.
struct Lif {
    const void *x = nullptr, *ds = nullptr;                // (steps, entries)
    void *s = nullptr, *dx = nullptr;                      // (steps, entries)
    const float *v_first = nullptr, *dv_last = nullptr;    // (entries); may be null: 0
    float *v_last = nullptr, *dv_first = nullptr;          // (entries); may be null
    float decay = 0.5f, gain = 0.5f, threshold = 1.0f;
    float alpha = 4.0f;                                    // the gradient of s is that of sigmoid(alpha (u - threshold))
    bool soft = false, detached = true;                    // detached: what a spike takes away passes no gradient on
    Index steps = 0, entries = 0, block = 4096;
    int threads = 1;
};

// Steps that the gradient can hold in a buffer of its own.
constexpr Index kMostSteps = 64;

struct PointwiseKernels {
    void (*crrelu)(const Crrelu&, Index first, Index last);           // entries
    void (*crrelu_backward)(const Crrelu&, Index first, Index last);  // blocks
    void (*lif)(const Lif&, Index first, Index last);                 // entries
    void (*lif_backward)(const Lif&, Index first, Index last);        // entries
};

PointwiseKernels scalar_pointwise(Dtype);
PointwiseKernels avx2_pointwise(Dtype);
PointwiseKernels avx512_pointwise(Dtype);

void crrelu(Dtype, const Crrelu&);
void lif(Dtype, const Lif&);

}  // namespace softgate
