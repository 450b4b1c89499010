#include "pointwise.hpp"

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

PointwiseKernels kernels(Dtype dtype) {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_pointwise(dtype);
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_pointwise(dtype);
#endif
        default: return scalar_pointwise(dtype);
    }
}

}  // namespace

// Parts begin at whole blocks, also where nothing is summed over them: no two threads write to one cache line.
void crrelu(Dtype dtype, const Crrelu& c) {
    const PointwiseKernels k = kernels(dtype);
    const Index blocks = (c.entries + c.block - 1) / c.block;
    share_out(blocks, c.entries, c.threads, [&](Index first, Index last) {
        if (c.dy != nullptr) return k.crrelu_backward(c, first, last);
        k.crrelu(c, first * c.block, std::min(c.entries, last * c.block));
    });
}

void lif(Dtype dtype, const Lif& c) {
    const PointwiseKernels k = kernels(dtype);
    const Index blocks = (c.entries + c.block - 1) / c.block;
    share_out(blocks, c.steps * c.entries, c.threads, [&](Index first, Index last) {
        (c.ds != nullptr ? k.lif_backward : k.lif)(c, first * c.block, std::min(c.entries, last * c.block));
    });
}

}  // namespace softgate
