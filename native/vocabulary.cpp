#include "vocabulary.hpp"

#include <algorithm>

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

constexpr Index kGrain = 65536;  // logits that are worth waking another thread for

RowSweep kernel() {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_vocabulary();
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_vocabulary();
#endif
        default: return scalar_vocabulary();
    }
}

}  // namespace

void sweep(const Vocabulary& v, Sweep kind) {
    const RowSweep run = kernel();
    const Index useful = std::min<Index>(v.rows, v.rows * v.classes / kGrain);
    const int workers = int(std::max<Index>(1, std::min<Index>(v.threads, useful)));
    const auto share = [&](int w) {
        for (Index r = v.rows * w / workers; r < v.rows * (w + 1) / workers; ++r) run(v, kind, r);
    };
    if (workers == 1) return share(0);
    parallel(workers, share);
}

}  // namespace softgate
