#include <cmath>
#include <limits>

#include "filters.hpp"
#include "vec_scalar.hpp"
// The kernels are written on the lanes above.
#include "gemm.hpp"
#include "filters_panels.hpp"

namespace softgate {

FilterKernels scalar_filters() { return filters_of_this_isa(); }

}  // namespace softgate
