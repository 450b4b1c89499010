// The kernels of experts.hpp on the vectors of the instruction set that includes this.
#pragma once

namespace softgate {
namespace {

// Rows of x and of the matrix that are multiplied together: each part of one is loaded once for all of the other.
constexpr int kTogether = 4;

// Single numbers of any type.
template <class T>
inline float number(const T* p) {
    float lanes[kWidth];
    store(lanes, load_n(p, 1, 0.0f));
    return lanes[0];
}
inline float number(const float* p) { return *p; }
template <class T>
inline void put_number(T* p, float value) {
    store_n(p, set(value), 1);
}
inline void put_number(float* p, float value) { *p = value; }

// The typed addresses of an ExpertRows.
template <class T>
struct Typed {
    const ExpertRows& e;
    T* x(Index row) const { return static_cast<T*>(e.x) + row * e.x_stride; }
    T* y(Index row) const { return static_cast<T*>(e.y) + row * e.y_stride; }
    T* w(const std::int64_t* segment) const { return static_cast<T*>(e.w) + segment[0] * e.outputs * e.inputs; }
    const T* bias(const std::int64_t* segment) const {
        return e.bias == nullptr ? nullptr : static_cast<const T*>(e.bias) + segment[0] * e.outputs;
    }
};

// A chain of its own for every pair: the bits of a result do not depend on its neighbours.
template <int Rows, int Outputs, class T>
inline void dot_products(const T* x, Index x_stride, const T* w, Index inputs, const T* bias, T* y, Index y_stride) {
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
    for (; k + kWidth <= inputs; k += kWidth) step(k, [](const T* p) { return load(p); });
    if (k < inputs) step(k, [&](const T* p) { return load_n(p, inputs - k, 0.0f); });
    for (int i = 0; i < Rows; ++i)
        for (int j = 0; j < Outputs; ++j)
            put_number(y + i * y_stride + j, reduce_add(sum[i][j]) + (bias == nullptr ? 0.0f : number(bias + j)));
}

template <int Rows, class T>
inline void strip_of_outputs(const ExpertRows& e, const T* x, const T* w, const T* bias, T* y, Index first,
                             Index last) {
    Index j = first;
    for (; j + kTogether <= last; j += kTogether)
        dot_products<Rows, kTogether>(x, e.x_stride, w + j * e.inputs, e.inputs, bias ? bias + j : nullptr, y + j,
                                      e.y_stride);
    for (; j < last; ++j)
        dot_products<Rows, 1>(x, e.x_stride, w + j * e.inputs, e.inputs, bias ? bias + j : nullptr, y + j, e.y_stride);
}

// Strips of outputs outside, rows inside: a strip of the matrix stays in the first cache for all rows.
template <class T>
inline void forward_rows(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    const Typed<T> at{e};
    const T *w = at.w(segment), *bias = at.bias(segment);
    for (Index j = first; j < last; j += kTogether) {
        const Index end = j + kTogether < last ? j + kTogether : last;
        for (Index r = segment[1]; r < segment[2]; r += kTogether) {
            const T* x = at.x(r);
            T* y = at.y(r);
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
        f(j, [](const auto* p) { return load(p); }, [](auto* p, Vec v) { store(p, v); });
    if (j < n)
        f(j, [&](const auto* p) { return load_n(p, n - j, 0.0f); }, [&](auto* p, Vec v) { store_n(p, v, n - j); });
}

// to = or += sum over i of factor[i * step] * from[i * stride + …], n numbers.
template <int Terms, class T>
inline void add_scaled(const T* factor, Index step, const T* from, Index stride, float* to, Index n, bool add) {
    Vec factors[Terms];
    for (int i = 0; i < Terms; ++i) factors[i] = set(number(factor + i * step));
    by_vectors(n, [&](Index k, auto get, auto put) {
        Vec sum = add ? get(to + k) : set(0.0f);
        for (int i = 0; i < Terms; ++i) sum = fma(factors[i], get(from + i * stride + k), sum);
        put(to + k, sum);
    });
}

// The same for any number of terms, always in their order; none at all gives 0.
template <class T>
inline void weighted_sum(Index terms, const T* factor, Index step, const T* from, Index stride, float* to, Index n,
                         bool add) {
    if (terms == 0 && !add) return clear(to, n);
    for (Index i = 0; i < terms; i += kTogether) {
        const T* f = factor + i * step;
        const T* rows = from + i * stride;
        switch (terms - i) {
            case 1: add_scaled<1>(f, step, rows, stride, to, n, add || i); break;
            case 2: add_scaled<2>(f, step, rows, stride, to, n, add || i); break;
            case 3: add_scaled<3>(f, step, rows, stride, to, n, add || i); break;
            default: add_scaled<kTogether>(f, step, rows, stride, to, n, add || i);
        }
    }
}

// Lines of float sums for results of type T: the results themselves, or memory of this thread that is rounded at last.
template <class T>
class Sums {
  public:
    Sums(T* out, Index stride, Index lines, Index n) : out_(out), stride_(stride), lines_(lines), n_(n) {
        if constexpr (!kDirect) memory().resize(std::size_t(lines * n));
    }
    float* line(Index i) const {
        if constexpr (kDirect)
            return out_ + i * stride_;
        else
            return memory().data() + i * n_;
    }
    void widen() const {  // what is there already
        if constexpr (!kDirect)
            each([&](Index k, T* out, float* sum, auto get, auto put) { put(sum + k, get(out + k)); });
    }
    void finish() const {
        if constexpr (!kDirect)
            each([&](Index k, T* out, float* sum, auto get, auto put) { put(out + k, get(sum + k)); });
    }

  private:
    static constexpr bool kDirect = sizeof(T) == sizeof(float);
    static std::vector<float>& memory() {
        thread_local std::vector<float> numbers;
        return numbers;
    }
    template <class F>
    void each(F f) const {
        for (Index i = 0; i < lines_; ++i) {
            T* out = out_ + i * stride_;
            float* sum = line(i);
            by_vectors(n_, [&](Index k, auto get, auto put) { f(k, out, sum, get, put); });
        }
    }
    T* out_;
    Index stride_, lines_, n_;
};

// A strip of the matrix for all rows, then the next.
template <class T>
inline void input_grad_rows(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    const Typed<T> at{e};
    const T* w = at.w(segment) + first;
    const Sums<T> sums(at.x(segment[1]) + first, e.x_stride, segment[2] - segment[1], last - first);
    for (Index j = 0; j < e.outputs || j == 0; j += kTogether) {
        const Index terms = e.outputs - j < kTogether ? e.outputs - j : kTogether;
        for (Index r = segment[1]; r < segment[2]; ++r)
            weighted_sum<T>(terms, at.y(r) + j, 1, w + j * e.inputs, e.inputs, sums.line(r - segment[1]), last - first,
                            j > 0);
    }
    sums.finish();
}

template <class T>
inline void weight_grad_rows(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    const Typed<T> at{e};
    for (Index j = first; j < last; ++j) {
        const Sums<T> sums(at.w(segment) + j * e.inputs, e.inputs, 1, e.inputs);
        if (segment[3] != 0) sums.widen();
        weighted_sum<T>(segment[2] - segment[1], at.y(segment[1]) + j, e.y_stride, at.x(segment[1]), e.x_stride,
                        sums.line(0), e.inputs, segment[3] != 0);
        sums.finish();
    }
}

template <class T>
inline void rows_of_expert(const ExpertRows& e, const std::int64_t* segment, Index first, Index last) {
    switch (e.kind) {
        case RowProduct::forward: return forward_rows<T>(e, segment, first, last);
        case RowProduct::input_grad: return input_grad_rows<T>(e, segment, first, last);
        case RowProduct::weight_grad: return weight_grad_rows<T>(e, segment, first, last);
    }
}

template <class T>
inline void gate_row(const SwiGlu& s, Index row) {
    const T *gate = static_cast<const T*>(s.h) + row * s.h_stride, *up = gate + s.features;
    T* a = static_cast<T*>(s.a) + row * s.a_stride;
    by_vectors(s.features, [&](Index j, auto get, auto put) {
        const Vec g = get(gate + j);
        put(a + j, mul(mul(g, sigmoid_of(g)), get(up + j)));
    });
}

template <class T>
inline void gate_backward_row(const SwiGlu& s, Index row) {
    const T *gate = static_cast<const T*>(s.h) + row * s.h_stride, *up = gate + s.features;
    const T* da = static_cast<const T*>(s.da) + row * s.da_stride;
    T *dgate = static_cast<T*>(s.dh) + row * s.dh_stride, *dup = dgate + s.features;
    T* a = static_cast<T*>(s.a) + row * s.a_stride;
    const Vec w = set(s.w[row]);
    Vec dot = set(0.0f);
    by_vectors(s.features, [&](Index j, auto get, auto put) {
        const Vec g = get(gate + j), u = get(up + j), d = get(da + j), p = sigmoid_of(g), silu = mul(g, p);
        const Vec activation = mul(silu, u), scaled = mul(w, d);
        dot = fma(d, activation, dot);
        put(a + j, mul(w, activation));
        // silu'(g) = p + g p (1 - p)
        put(dgate + j, mul(mul(scaled, u), fma(silu, sub(set(1.0f), p), p)));
        put(dup + j, mul(scaled, silu));
    });
    s.dw[row] = reduce_add(dot);
}

template <class T>
constexpr ExpertKernels kExperts{rows_of_expert<T>, gate_row<T>, gate_backward_row<T>};

inline ExpertKernels experts_of_this_isa(Dtype dtype) {
    if (dtype == Dtype::bf16) return kExperts<bf16>;
    if (dtype == Dtype::f16) return kExperts<f16>;
    return kExperts<float>;
}

}  // namespace
}  // namespace softgate
