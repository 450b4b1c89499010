// The kernels of experts.hpp on the vectors of the instruction set that includes this.
#pragma once

namespace softgate {
namespace {

// Rows of x and of the matrix that are multiplied together: each part of one is loaded once for all of the other.
constexpr int kTogether = 4;

// A chain of its own for every pair: the bits of a result do not depend on its neighbours.
template <int Rows, int Outputs>
inline void dot_products(const float* x, Index x_stride, const float* w, Index inputs, const float* bias, float* y,
                         Index y_stride) {
    Vec sum[Rows][Outputs];
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Outputs; ++j) sum[i][j] = set(0.0f);
    const auto step = [&](Index k, auto part) {
        Vec row[Rows];
        for (int i = 0; i < Rows; ++i) row[i] = part(x + i * x_stride + k);
        for (int j = 0; j < Outputs; ++j) {
            const Vec column = part(w + j * inputs + k);
            for (int i = 0; i < Rows; ++i) sum[i][j] = fma(row[i], column, sum[i][j]);
        }
    };
    Index k = 0;
    for (; k + kWidth <= inputs; k += kWidth) step(k, [](const float* p) { return load(p); });
    if (k < inputs) step(k, [&](const float* p) { return load_n(p, inputs - k, 0.0f); });
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Outputs; ++j)
            y[i * y_stride + j] = reduce_add(sum[i][j]) + (bias == nullptr ? 0.0f : bias[j]);
}

template <int Rows>
inline void strip_of_outputs(const ExpertRows& e, const float* x, const float* w, const float* bias, float* y,
                             Index first, Index last) {
    Index j = first;
    for (; j + kTogether <= last; j += kTogether)
        dot_products<Rows, kTogether>(x, e.x_stride, w + j * e.inputs, e.inputs, bias ? bias + j : nullptr, y + j,
                                      e.y_stride);
    for (; j < last; ++j)
        dot_products<Rows, 1>(x, e.x_stride, w + j * e.inputs, e.inputs, bias ? bias + j : nullptr, y + j, e.y_stride);
}

// Strips of outputs outside, rows inside: a strip of the matrix stays in the first cache for all rows.
inline void forward_rows(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    const float* w = e.w + segment[0] * e.outputs * e.inputs;
    const float* bias = e.bias == nullptr ? nullptr : e.bias + segment[0] * e.outputs;
    for (Index j = first; j < last; j += kTogether) {
        const Index end = j + kTogether < last ? j + kTogether : last;
        for (Index r = segment[1]; r < segment[2]; r += kTogether) {
            const float* x = e.x + r * e.x_stride;
            float* y = e.y + r * e.y_stride;
            switch (segment[2] - r) {
                case 1: strip_of_outputs<1>(e, x, w, bias, y, j, end); break;
                case 2: strip_of_outputs<2>(e, x, w, bias, y, j, end); break;
                case 3: strip_of_outputs<3>(e, x, w, bias, y, j, end); break;
                default: strip_of_outputs<kTogether>(e, x, w, bias, y, j, end);
            }
        }
    }
}

template <class F>
inline void by_vectors(Index n, F f) {
    Index j = 0;
    for (; j + kWidth <= n; j += kWidth)
        f(j, [](const float* p) { return load(p); }, [](float* p, Vec v) { store(p, v); });
    if (j < n)
        f(j, [&](const float* p) { return load_n(p, n - j, 0.0f); }, [&](float* p, Vec v) { store_n(p, v, n - j); });
}

// to = or += sum over i of factor[i * step] * from[i * stride + …], n numbers.
template <int Terms>
inline void add_scaled(const float* factor, Index step, const float* from, Index stride, float* to, Index n, bool add) {
    Vec factors[Terms];
    for (int i = 0; i < Terms; ++i) factors[i] = set(factor[i * step]);
    by_vectors(n, [&](Index k, auto get, auto put) {
        Vec sum = add ? get(to + k) : set(0.0f);
        for (int i = 0; i < Terms; ++i) sum = fma(factors[i], get(from + i * stride + k), sum);
        put(to + k, sum);
    });
}

// The same for any number of terms, always in their order; none at all gives 0.
inline void weighted_sum(Index terms, const float* factor, Index step, const float* from, Index stride, float* to,
                         Index n, bool add) {
    if (terms == 0 && !add) return clear(to, n);
    for (Index i = 0; i < terms; i += kTogether) {
        const float* f = factor + i * step;
        const float* rows = from + i * stride;
        switch (terms - i) {
            case 1: add_scaled<1>(f, step, rows, stride, to, n, add || i); break;
            case 2: add_scaled<2>(f, step, rows, stride, to, n, add || i); break;
            case 3: add_scaled<3>(f, step, rows, stride, to, n, add || i); break;
            default: add_scaled<kTogether>(f, step, rows, stride, to, n, add || i);
        }
    }
}

// A strip of the matrix for all rows, then the next.
inline void input_grad_rows(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    const float* w = e.w + segment[0] * e.outputs * e.inputs + first;
    for (Index j = 0; j < e.outputs || j == 0; j += kTogether) {
        const Index terms = e.outputs - j < kTogether ? e.outputs - j : kTogether;
        for (Index r = segment[1]; r < segment[2]; ++r)
            weighted_sum(terms, e.y + r * e.y_stride + j, 1, w + j * e.inputs, e.inputs, e.x + r * e.x_stride + first,
                         last - first, j > 0);
    }
}

inline void weight_grad_rows(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    float* w = e.w + segment[0] * e.outputs * e.inputs;
    for (Index j = first; j < last; ++j)
        weighted_sum(segment[2] - segment[1], e.y + segment[1] * e.y_stride + j, e.y_stride,
                     e.x + segment[1] * e.x_stride, e.x_stride, w + j * e.inputs, e.inputs, segment[3] != 0);
}

inline void rows_of_expert(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    switch (e.kind) {
        case RowProduct::forward: return forward_rows(e, segment, first, last);
        case RowProduct::input_grad: return input_grad_rows(e, segment, first, last);
        case RowProduct::weight_grad: return weight_grad_rows(e, segment, first, last);
    }
}

inline void gate_row(const SwiGlu& s, Index row) {
    const float *gate = s.h + row * s.h_stride, *up = gate + s.features;
    float* a = s.a + row * s.a_stride;
    by_vectors(s.features, [&](Index j, auto get, auto put) {
        const Vec g = get(gate + j);
        put(a + j, mul(mul(g, sigmoid_of(g)), get(up + j)));
    });
}

inline void gate_backward_row(const SwiGlu& s, Index row) {
    const float *gate = s.h + row * s.h_stride, *up = gate + s.features, *da = s.da + row * s.da_stride;
    float *dgate = s.dh + row * s.dh_stride, *dup = dgate + s.features;
    by_vectors(s.features, [&](Index j, auto get, auto put) {
        const Vec g = get(gate + j), d = get(da + j), p = sigmoid_of(g);
        // silu'(g) = p + g p (1 - p)
        put(dgate + j, mul(mul(d, get(up + j)), fma(mul(g, p), sub(set(1.0f), p), p)));
        put(dup + j, mul(d, mul(g, p)));
    });
}

inline ExpertKernels experts_of_this_isa() { return {rows_of_expert, gate_row, gate_backward_row}; }

}  // namespace
}  // namespace softgate
