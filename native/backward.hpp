// Gradients of attention for a chunk of the keys of one key/value head, over all query heads that share it.
//   S, G = q kᵀ, dO vᵀ -> weights W and score gradients dS in place -> dV += Wᵀ dO, dK += dSᵀ q, dq += dS k
#pragma once

namespace softgate {
namespace {

constexpr Index kBackStride = kBackKeys + 16;  // see kTileStride

// From a row's scores s and g = dO vᵀ: its weights (in s) and the gradient of its scores (in g). delta and extra are
// the row's terms as the caller formed them; rows without keys have no entries here.
struct Gradient {
    const Block& block;
    double sum = 0.0;  // of the score gradients, of sigmoid only

    float kept(int k, Index r) const { return block.a.row[k][block.row_index() + r]; }
    float delta(Index r) const { return block.a.delta[block.row_index() + r]; }

    // delta = dO · O
    void softmax(Index r, float* s, float* g, Index n) const {
        const Vec shift = set(kept(0, r)), inverse = set(kept(1, r)), mean = set(delta(r));
        map_rows(s, g, n, kMinusInfinity, [&](Vec& w, Vec& d) {
            w = mul(exp_of(sub(w, shift)), inverse);
            d = mul(w, sub(d, mean));
        });
    }
    void sigmoid(float* s, float* g, Index n, Vec head_bias) {
        Vec total = set(0.0f);
        map_rows(s, g, n, kMinusInfinity, [&](Vec& w, Vec& d) {
            w = sigmoid_of(add(w, head_bias));
            const Vec product = mul(w, d);
            d = fnma(w, product, product);
            total = add(total, d);
        });
        sum += sum_double(total);
    }
    // delta = (zeta - gamma) dO · second; torch's clamp lets the gradient pass at its bounds, and so does this.
    void clipped(Index r, float* s, float* g, Index n) const {
        const Vec shift = set(kept(0, r)), inverse = set(kept(1, r)), mean = set(delta(r));
        const Vec gamma = set(block.a.gamma), width = set(block.a.zeta - block.a.gamma), slope = mul(inverse, width);
        const Vec zero = set(0.0f), one = set(1.0f);
        map_rows(s, g, n, kMinusInfinity, [&](Vec& w, Vec& d) {
            const Vec e = exp_of(sub(w, shift)), x = fma(e, slope, gamma);
            const Vec free = where_less(x, zero, zero, where_less(one, x, zero, width));
            w = min2(one, max2(zero, x));
            d = mul(mul(e, inverse), sub(mul(free, d), mean));
        });
    }
    // delta = dO · O
    void softplus(Index r, float* s, float* g, Index n) const {
        if (kept(0, r) == 0.0f) return clear(s, n), clear(g, n);  // scores so low that no weight is left
        const Vec inverse = set(1.0f / kept(0, r)), mean = set(delta(r));
        map_rows(s, g, n, kMinusInfinity, [&](Vec& w, Vec& d) {
            d = mul(mul(sub(d, mean), inverse), sigmoid_of(w));
            w = mul(softplus_of(w), inverse);
        });
    }
    // delta = dO · O, extra = p o (dO · second - delta y)
    template <class Power>
    void reweighted(Index r, float* s, float* g, Index n, Power power) const {
        const Index at = block.row_index() + r;
        const Vec ratio = set(block.a.count[at] / kept(0, r)), level = set(block.a.offset[at]);
        const Vec top = set(1.0f / kept(1, r)), share = set(1.0f / kept(2, r)), mean = set(delta(r));
        const Vec slope = set(block.a.count[at] * float(block.a.power) / (kept(2, r) * kept(1, r)));
        const Vec rest = set(block.a.extra[at]), inverse = set(1.0f / kept(0, r)), zero = set(0.0f);
        map_rows(s, g, n, kMinusInfinity, [&](Vec& w, Vec& d) {
            const Vec t = mul(Reweighted::excess(softplus_of(w), ratio, level), top);
            const Vec lower = where_less(zero, t, power(t), t);
            const Vec du = mul(mul(lower, slope), sub(d, mean));
            d = mul(mul(sub(du, rest), inverse), sigmoid_of(w));
            w = mul(mul(lower, t), share);
        });
    }
    void reweighted(Index r, float* s, float* g, Index n) const {
        if (kept(1, r) == 0.0f) return softplus(r, s, g, n);  // all keys tie
        switch (block.a.power) {
            case 15: return reweighted(r, s, g, n, [](Vec t) { return power_of(t, 14); });
            case 3: return reweighted(r, s, g, n, [](Vec t) { return power_of(t, 2); });
            default: return reweighted(r, s, g, n, [this](Vec t) { return power_of(t, block.a.power - 1); });
        }
    }
};

struct BackwardScratch {
    float *keys, *key_rows, *values, *grad_key, *grad_value;  // of the chunk
    float *queries, *query_panels, *grads, *grad_panels, *grad_query, *scores, *grad_scores;  // of a block of queries

    static Index size(const Attention& a) { return BackwardScratch().cut(a, nullptr); }
    Index cut(const Attention& a, float* memory) {
        const Index n = std::min(back_chunk(a.keys), round_up(a.keys, kPanel));
        const Index dim = round_up(a.dim, kPanel), value_dim = round_up(a.value_dim, kPanel);
        const Index sizes[12] = {n * a.dim, n * dim, n * a.value_dim, n * dim, n * value_dim,
                                 kBackRows * a.dim, kBackRows * dim, kBackRows * a.value_dim, kBackRows * value_dim,
                                 kBackRows * dim, kBackRows * kBackStride, kBackRows * kBackStride};
        float** parts[12] = {&keys, &key_rows, &values, &grad_key, &grad_value, &queries,
                             &query_panels, &grads, &grad_panels, &grad_query, &scores, &grad_scores};
        Index used = 0;
        for (int k = 0; k < 12; ++k) {
            *parts[k] = memory == nullptr ? nullptr : memory + used;
            used += round_up(sizes[k], kLine);
        }
        return used;
    }
};

struct Chunk {
    const Attention& a;
    BackwardScratch scratch;
    Index g, begin, end, dim, value_dim;

    Chunk(const Attention& call, Index group, Index key, float* memory)
        : a(call), g(group), begin(key), end(std::min(key + back_chunk(call.keys), call.keys)),
          dim(round_up(a.dim, kPanel)), value_dim(round_up(a.value_dim, kPanel)) {
        scratch.cut(a, memory);
    }

    void pack_keys(Index b) {
        pack_transposed(a.key.at(b, g, begin), a.key.t, a.key.d, end - begin, a.dim, scratch.keys);
        pack_transposed(a.value.at(b, g, begin), a.value.t, a.value.d, end - begin, a.value_dim, scratch.values);
        for (Index j = begin; j < end; j += kBackKeys)
            pack_panels(a.key.at(b, g, j), a.key.t, a.key.d, std::min(kBackKeys, end - j), a.dim,
                        scratch.key_rows + (j - begin) * dim);
        clear(scratch.grad_key, (end - begin) * dim);
        clear(scratch.grad_value, (end - begin) * value_dim);
    }

    void pack_block(const Block& block) {
        pack_queries(block, scratch.queries);
        pack_panels(scratch.queries, a.dim, 1, block.rows, a.dim, scratch.query_panels);
        const View& grad = a.grad_output;
        float ones[kBackRows];
        for (float& one : ones) one = 1.0f;
        pack_rows(grad.at(block.b, block.h, block.i), grad.t, grad.d, block.rows, a.value_dim, ones, scratch.grads);
        pack_panels(scratch.grads, a.value_dim, 1, block.rows, a.value_dim, scratch.grad_panels);
        clear(scratch.grad_query, block.rows * dim);
    }

    void weigh(const Tile& tile, Gradient& gradient) {
        const Vec head_bias = set(a.head_bias == nullptr ? 0.0f : a.head_bias[gradient.block.b * a.heads + gradient.block.h]);
        for (Index r = 0; r < tile.rows; ++r) {
            float *s = tile.row(r) + tile.begin[r], *d = scratch.grad_scores + r * kBackStride + tile.begin[r];
            const Index n = tile.length(r);
            if (n == 0) continue;
            switch (a.weights) {
                case Weights::softmax: gradient.softmax(r, s, d, n); break;
                case Weights::sigmoid: gradient.sigmoid(s, d, n, head_bias); break;
                case Weights::clipped: gradient.clipped(r, s, d, n); break;
                case Weights::softplus: gradient.softplus(r, s, d, n); break;
                case Weights::reweighted: gradient.reweighted(r, s, d, n); break;
            }
        }
    }

    double run_block(const Block& block, float* grad_query) {
        pack_block(block);
        Gradient gradient{block};
        const Index from = std::max(begin, block.first_key() / kBackKeys * kBackKeys);
        for (Index j = from; j < std::min(end, block.last_key()); j += kBackKeys) {
            const Index n = std::min(kBackKeys, end - j), at = j - begin;
            const Tile scores(block, scratch.scores, kBackStride, j, n);
            Tile grads = scores;
            grads.s = scratch.grad_scores;
            multiply_keys(scores, scratch.queries, a.dim, scratch.keys + at * a.dim);
            multiply_keys(grads, scratch.grads, a.value_dim, scratch.values + at * a.value_dim);
            add_biases(block, scores);
            weigh(scores, gradient);
            clear_unseen(scores, scores.s);
            clear_unseen(grads, grads.s);
            add_transposed_product(scores, scratch.grad_panels, value_dim, scratch.grad_value + at * value_dim);
            add_transposed_product(grads, scratch.query_panels, dim, scratch.grad_key + at * dim);
            add_product(grads, scratch.key_rows + at * dim, dim, scratch.grad_query);
        }
        for (Index r = 0; r < block.rows; ++r) {
            const Index row = block.row_index() + r;
            const float factor = a.row_scale == nullptr ? a.scale : a.scale * a.row_scale[row];
            float* out = grad_query + row * a.dim;
            for (Index k = 0; k < a.dim; ++k) out[k] += scratch.grad_query[r * dim + k] * factor;
        }
        return gradient.sum;
    }

    void write(Index b) const {
        const Index at = (b * a.groups + g) * a.keys + begin;
        for (Index j = 0; j < end - begin; ++j) {
            for (Index k = 0; k < a.dim; ++k) a.grad_key[(at + j) * a.dim + k] = scratch.grad_key[j * dim + k];
            for (Index k = 0; k < a.value_dim; ++k)
                a.grad_value[(at + j) * a.value_dim + k] = scratch.grad_value[j * value_dim + k];
        }
    }
};

inline Index backward_scratch(const Attention& a) { return BackwardScratch::size(a); }

// grad_query (B, H, T, D) is added to, grad_bias (B, H) likewise.
inline void backward(const Attention& a, Index b, Index g, Index key, float* grad_query, double* grad_bias,
                     float* memory) {
    Chunk chunk(a, g, key, memory);
    chunk.pack_keys(b);
    const Index share = a.heads / a.groups;
    for (Index h = g * share; h < (g + 1) * share; ++h) {
        double total = 0.0;
        for (Index i = 0; i < a.queries; i += kBackRows) {
            const Block block(a, b, h, i, std::min(kBackRows, a.queries - i));
            if (block.last_key() <= chunk.begin || block.first_key() >= chunk.end) continue;
            total += chunk.run_block(block, grad_query);
        }
        if (grad_bias != nullptr) grad_bias[b * a.heads + h] += total;
    }
    chunk.write(b);
}

}  // namespace
}  // namespace softgate
