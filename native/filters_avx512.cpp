#include <cmath>
#include <limits>

#include "filters.hpp"
#include "vec_avx512.hpp"
// The kernels are written on the lanes above.
#include "gemm.hpp"
#include "filters_panels.hpp"

namespace softgate {

FilterKernels avx512_filters() { return filters_of_this_isa(); }

}  // namespace softgate
