// Whole tensors: (outer, n, inner) in C order, softmax along the middle.
#pragma once

#include "kernels.hpp"

namespace softgate {

constexpr Index kReleaseAbove = 4096;  // elements; below, taking Python's lock back costs more than the work

// Choices a caller may leave open.
enum class Plan : int { automatic = -1, two_pass, recompute, reload, online };
enum class Streaming : int { automatic = -1, off, on };

struct Shape {
    Index outer, n, inner;
    Index size() const { return outer * n * inner; }
};

struct Options {
    Plan plan = Plan::automatic;
    Streaming streaming = Streaming::automatic;
    bool empty_zero = false;
    int threads = 1;
};

// y has the shape of x, or (outer, inner) for logsumexp; it may be x itself.
void run_softmax(Op op, Dtype dtype, const void* x, void* y, Shape shape, Options options);

// dx = backward of (log_)softmax from its output y and the incoming gradient dy; dx may be dy or y itself.
void run_gradient(bool log, Dtype dtype, const void* y, const void* dy, void* dx, Shape shape, Options options);

// One (mantissa, exponent) per row of a contiguous (rows, n) array.
void run_pairs(Dtype dtype, const void* x, float* mantissa, float* exponent, Index rows, Index n, int threads);

// The algorithm that `automatic` stands for.
Algorithm choose_algorithm(Op op, Dtype dtype, Shape shape);

}  // namespace softgate
