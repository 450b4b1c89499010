#include "filters.hpp"

#include <algorithm>
#include <vector>

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

FilterKernels kernels() {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_filters();
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_filters();
#endif
        default: return scalar_filters();
    }
}

}  // namespace

void some_filters(const SomeFilters& f) {
    if (f.count == 0 || f.places() == 0) return;
    const FilterKernels run = kernels();
    const Index panels = (f.places() + run.panel - 1) / run.panel;
    // few places are shared out by filters: each thread then lays out the same inputs, which is little beside the rest
    const Index shares = panels >= f.threads ? 1 : std::min<Index>(f.threads, f.count);
    const Index inner = f.channels * f.taps();
    share_out(panels * shares, inner * f.count * panels, f.threads, [&](Index first, Index last) {
        std::vector<float> packed(inner * run.panel);
        std::vector<std::int32_t> offsets(f.taps() * run.panel);
        Index laid_out = -1;
        for (Index task = first; task < last; ++task) {
            const Index panel = task / shares, share = task % shares, place = panel * run.panel;
            if (panel != laid_out) run.pack(f, place, offsets.data(), packed.data());
            laid_out = panel;
            run.run(f, place, f.count * share / shares, f.count * (share + 1) / shares, packed.data());
        }
    });
}

}  // namespace softgate
