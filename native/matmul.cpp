#include "matmul.hpp"

#include <algorithm>
#include <cstring>

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {

bool has_matmul() {
#if defined(SOFTGATE_HAVE_AVX2)
    return current_isa() == Isa::avx2;
#else
    return false;
#endif
}

void matmul([[maybe_unused]] const Product& p) {
#if defined(SOFTGATE_HAVE_AVX2)
    if (p.k == 0) {
        const Index size = size_of(p.c_type);
        for (Index i = 0; i < p.m && !p.add; ++i) std::memset(static_cast<char*>(p.c) + i * p.c_row * size, 0, p.n * size);
        return;
    }
    constexpr Index step = 16;  // columns of whole vectors
    const Index work = p.m * p.n * p.k / 64;
    if (p.m > p.n)
        return share_out(p.m, work, p.threads, [&](Index first, Index last) { matmul_avx2(p, {first, last, 0, p.n}); });
    share_out((p.n + step - 1) / step, work, p.threads, [&](Index first, Index last) {
        matmul_avx2(p, {0, p.m, first * step, std::min(last * step, p.n)});
    });
#endif
}

}  // namespace softgate
