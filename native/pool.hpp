// Runs task(0) … task(count - 1), the calling thread taking part. What a task computes must not depend on the thread
// that runs it; then results do not depend on the number of threads either.
#pragma once

#include <functional>

namespace softgate {

void parallel(int count, const std::function<void(int)>& task);

}  // namespace softgate
