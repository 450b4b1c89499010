// Runs task(0) … task(count - 1), the calling thread taking part. What a task computes must not depend on the thread
// that runs it; then results do not depend on the number of threads either.
#pragma once

#include <algorithm>
#include <functional>

#include "kernels.hpp"

namespace softgate {

constexpr Index kGrain = 65536;  // elements that are worth waking another thread for

void parallel(int count, const std::function<void(int)>& task);

// Calls f(first, last) with parts of 0 … count for at most so many threads, where there are elements enough for them.
template <class F>
void share_out(Index count, Index elements, int threads, F f) {
    const Index useful = std::min<Index>(count, elements / kGrain);
    const int workers = int(std::max<Index>(1, std::min<Index>(threads, useful)));
    if (workers == 1) return f(Index(0), count);
    parallel(workers, [&](int w) { f(count * w / workers, count * (w + 1) / workers); });
}

}  // namespace softgate
