#include "experts.hpp"

#include <algorithm>

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

constexpr Index kGrain = 65536;  // elements that are worth waking another thread for

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

// Calls f(first, last) with parts of 0 … count for several threads, if there is enough to do.
template <class F>
void share(Index count, Index elements, int threads, F f) {
    const Index useful = std::min<Index>(count, elements / kGrain);
    const int workers = int(std::max<Index>(1, std::min<Index>(threads, useful)));
    if (workers == 1) return f(Index(0), count);
    parallel(workers, [&](int w) { f(count * w / workers, count * (w + 1) / workers); });
}

}  // namespace

void expert_rows(const ExpertRows& e) {
    const auto run = kernels().rows;
    // every thread takes its part of every matrix: experts differ in their rows, matrices do not in their size
    share(e.kind == RowProduct::input_grad ? e.inputs : e.outputs, e.count * e.outputs * e.inputs, e.threads, [&](Index first, Index last) {
        for (Index s = 0; s < e.count; ++s) run(e, e.segments + 4 * s, first, last);
    });
}

void swiglu(const SwiGlu& s) {
    const ExpertKernels k = kernels();
    const auto run = s.da == nullptr ? k.gate : k.gate_backward;
    share(s.rows, s.rows * s.features, s.threads, [&](Index first, Index last) {
        for (Index r = first; r < last; ++r) run(s, r);
    });
}

}  // namespace softgate
