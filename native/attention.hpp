// Attention in O(T d) memory: one call, described without any instruction set. Shapes: query (B, H, T, D), key
// (B, G, S, D), value (B, G, S, Dv), G dividing H. Inputs may have any strides, outputs are contiguous; what is kept
// per row is an array (B, H, T).
#pragma once

#include "kernels.hpp"

namespace softgate {

// How a row of scores becomes weights.
//   softmax     exp(s) / sum                              keeps row[0] = max, row[1] = 1 / sum of exp(s - max)
//   sigmoid     1 / (1 + exp(-s - head_bias))             keeps nothing
//   clipped     clip((zeta - gamma) softmax + gamma)      keeps row[0..1] and second = sum of unclipped softmax times v
//   softplus    ln(1 + exp(s)) / sum                      keeps row[0] = sum
//   reweighted  relu(N softplus - offset)^power / sum     keeps row[0..3] and second, see Reweighted in weights.hpp
enum class Weights : int { softmax, sigmoid, clipped, softplus, reweighted };
enum class MaskKind : int { none, boolean, additive };
enum class Gate : int { none, sigmoid, half_sigmoid };  // half_sigmoid: 0.5 + 0.5 sigmoid

struct View {
    const float* data = nullptr;
    Index b = 0, h = 0, t = 0, d = 0;  // strides in entries
    const float* at(Index i, Index j, Index k = 0) const { return data + i * b + j * h + k * t; }
};

struct MaskView {
    const void* data = nullptr;
    Index b = 0, h = 0, t = 0, s = 0;
    MaskKind kind = MaskKind::none;
};

struct Attention {
    Index batch = 0, heads = 0, groups = 0, queries = 0, keys = 0, dim = 0, value_dim = 0;
    View query, key, value;

    MaskView mask;
    Index left = -1, right = -1;  // how many keys before and after its own position a query sees; -1: all
    const float* slopes = nullptr;  // (B, H): ALiBi, -slope |i + S - T - j| is added to the score

    Weights weights = Weights::softmax;
    float scale = 1.0f;
    const float* row_scale = nullptr;  // (B, H, T), multiplies scale
    const float* head_bias = nullptr;  // (B, H)
    float gamma = 0.0f, zeta = 1.0f;
    int power = 1;
    const float* count = nullptr;   // (B, H, T): N
    const float* offset = nullptr;  // (B, H, T)

    Gate gating = Gate::none;
    View gate;  // stride 0 where shared

    float* output = nullptr;  // (B, H, T, Dv)
    float* second = nullptr;  // (B, H, T, Dv), kept for the gradient; null if there is none
    float* row[4] = {};

    // Gradients. delta: (B, H, T), the row's own term, see the maps; extra: (B, H, T), of reweighted only.
    View grad_output;
    const float* delta = nullptr;
    const float* extra = nullptr;
    float* grad_query = nullptr;  // zeroed by the caller
    float* grad_key = nullptr;
    float* grad_value = nullptr;
    double* grad_bias = nullptr;  // (B, H) or null

    int threads = 1;

    Index row_index(Index b, Index h, Index i) const { return (b * heads + h) * queries + i; }
    Index group_of(Index h) const { return h / (heads / groups); }
    // Keys that query i may see: first <= j < last, before any mask.
    Index last_key(Index i) const {
        const Index last = right < 0 ? keys : i + keys - queries + right + 1;
        return last < 0 ? 0 : last > keys ? keys : last;
    }
    Index first_key(Index i) const {
        const Index first = left < 0 ? 0 : i + keys - queries - left, last = last_key(i);
        return first < 0 ? 0 : first > last ? last : first;
    }
};

// Rows of queries that share one pass over the keys, and keys of one tile of scores: 256 keys of 16 values fill half of
// a first-level cache.
constexpr Index kQueryRows = 72, kTileKeys = 256;
// Backward has sums over queries too, so its tiles are nearly square; two of them stay in the second-level cache.
constexpr Index kBackRows = 192, kBackKeys = 128;
// Keys of a unit of work in backward; a function of the shape alone, so that results do not depend on threads.
inline Index back_chunk(Index keys) {
    Index chunks = keys / 1024;
    chunks = chunks < 1 ? 1 : chunks > 8 ? 8 : chunks;
    const Index size = (keys + chunks - 1) / chunks;
    return (size + kBackKeys - 1) / kBackKeys * kBackKeys;
}

// What each instruction set offers; the driver (attention.cpp) shares the work out.
struct AttentionKernels {
    Index panel;  // keys and features are packed in panels of this width
    // key: panels of transposed keys, value: blocks of kTileKeys rows in panels.
    void (*pack)(const Attention&, Index b, Index g, float* key, float* value);
    Index (*forward_scratch)(const Attention&);
    void (*forward)(const Attention&, Index b, Index h, Index row, const float* key, const float* value, float* scratch);
    Index (*backward_scratch)(const Attention&);
    void (*backward)(const Attention&, Index b, Index g, Index key, float* grad_query, double* grad_bias, float* scratch);
    void (*count)(const Attention&, Index b, Index h, Index row, float* scratch);
};

// Maps that look at each row of scores twice keep all of it for so many queries in the second-level cache; 0 where
// that is not worth it, or not needed.
Index resident_rows(const Attention&);
Index forward_rows(const Attention&);  // rows per call of forward

const AttentionKernels* scalar_attention();
const AttentionKernels* avx2_attention();
const AttentionKernels* avx512_attention();

void attend(const Attention&);
void attend_backward(const Attention&);
void count_keys(const Attention&);  // writes row[0]: how many keys each query sees after all masks

}  // namespace softgate
