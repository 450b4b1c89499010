#include "experts.hpp"

#include <cstring>

#include "cpu.hpp"
#include "matmul.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

ExpertKernels kernels(Dtype dtype) {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_experts(dtype);
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_experts(dtype);
#endif
        default: return scalar_experts(dtype);
    }
}

// From so many rows on a product with copies in blocks pays.
constexpr Index kMany = 9;

// The product of the many rows of one segment.
Product product_of(const ExpertRows& e, const std::int64_t* segment) {
    const Index size = size_of(e.dtype), rows = segment[2] - segment[1];
    void* x = static_cast<char*>(e.x) + segment[1] * e.x_stride * size;
    void* y = static_cast<char*>(e.y) + segment[1] * e.y_stride * size;
    void* w = static_cast<char*>(e.w) + segment[0] * e.outputs * e.inputs * size;
    Product p;
    p.a_type = p.b_type = p.c_type = e.dtype, p.threads = e.threads;
    switch (e.kind) {
        case RowProduct::forward:
            p.m = rows, p.n = e.outputs, p.k = e.inputs;
            p.a = x, p.a_row = e.x_stride, p.a_column = 1, p.b = w, p.b_row = 1, p.b_column = e.inputs;
            p.c = y, p.c_row = e.y_stride, p.add = e.bias != nullptr;
            break;
        case RowProduct::input_grad:
            p.m = rows, p.n = e.inputs, p.k = e.outputs;
            p.a = y, p.a_row = e.y_stride, p.a_column = 1, p.b = w, p.b_row = e.inputs, p.b_column = 1;
            p.c = x, p.c_row = e.x_stride;
            break;
        case RowProduct::weight_grad:
            p.m = e.outputs, p.n = e.inputs, p.k = rows;
            p.a = y, p.a_row = 1, p.a_column = e.y_stride, p.b = x, p.b_row = e.x_stride, p.b_column = 1;
            p.c = w, p.c_row = e.inputs, p.add = segment[3] != 0;
    }
    return p;
}

void put_bias(const ExpertRows& e, const std::int64_t* segment) {
    const Index size = size_of(e.dtype);
    const char* bias = static_cast<const char*>(e.bias) + segment[0] * e.outputs * size;
    for (Index r = segment[1]; r < segment[2]; ++r)
        std::memcpy(static_cast<char*>(e.y) + r * e.y_stride * size, bias, e.outputs * size);
}

}  // namespace

void expert_rows(const ExpertRows& e) {
    const auto run = kernels(e.dtype).rows;
    const auto is_large = [&](Index s) { return has_matmul() && e.segments[4 * s + 2] - e.segments[4 * s + 1] >= kMany; };
    Index few = 0;
    for (Index s = 0; s < e.count; ++s) few += !is_large(s);
    // every thread takes its part of every matrix: experts differ in their rows, matrices do not in their size
    const Index lines = e.kind == RowProduct::input_grad ? e.inputs : e.outputs;
    if (few > 0)
        share_out(lines, few * e.outputs * e.inputs, e.threads, [&](Index first, Index last) {
            for (Index s = 0; s < e.count; ++s)
                if (!is_large(s)) run(e, e.segments + 4 * s, first, last);
        });
    for (Index s = 0; s < e.count; ++s) {
        if (!is_large(s)) continue;
        const std::int64_t* segment = e.segments + 4 * s;
        if (e.kind == RowProduct::forward && e.bias != nullptr) put_bias(e, segment);
        matmul(product_of(e, segment));
    }
}

void swiglu(const SwiGlu& s) {
    const ExpertKernels k = kernels(s.dtype);
    const auto run = s.da == nullptr ? k.gate : k.gate_backward;
    share_out(s.rows, s.rows * s.features, s.threads, [&](Index first, Index last) {
        for (Index r = first; r < last; ++r) run(s, r);
    });
}

}  // namespace softgate
