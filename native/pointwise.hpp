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

struct PointwiseKernels {
    void (*crrelu)(const Crrelu&, Index first, Index last);           // entries
    void (*crrelu_backward)(const Crrelu&, Index first, Index last);  // blocks
};

PointwiseKernels scalar_pointwise(Dtype);
PointwiseKernels avx2_pointwise(Dtype);
PointwiseKernels avx512_pointwise(Dtype);

void crrelu(Dtype, const Crrelu&);

}  // namespace softgate
