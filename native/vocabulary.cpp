#include "vocabulary.hpp"

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

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
    share_out(v.rows, v.rows * v.classes, v.threads, [&](Index first, Index last) {
        for (Index r = first; r < last; ++r) run(v, kind, r);
    });
}

}  // namespace softgate
