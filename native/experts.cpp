#include "experts.hpp"

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

ExpertKernels kernels() {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_experts();
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_experts();
#endif
        default: return scalar_experts();
    }
}

}  // namespace

void expert_rows(const ExpertRows& e) {
    const auto run = kernels().rows;
    // every thread takes its part of every matrix: experts differ in their rows, matrices do not in their size
    const Index lines = e.kind == RowProduct::input_grad ? e.inputs : e.outputs;
    share_out(lines, e.count * e.outputs * e.inputs, e.threads, [&](Index first, Index last) {
        for (Index s = 0; s < e.count; ++s) run(e, e.segments + 4 * s, first, last);
    });
}

void swiglu(const SwiGlu& s) {
    const ExpertKernels k = kernels();
    const auto run = s.da == nullptr ? k.gate : k.gate_backward;
    share_out(s.rows, s.rows * s.features, s.threads, [&](Index first, Index last) {
        for (Index r = first; r < last; ++r) run(s, r);
    });
}

}  // namespace softgate
