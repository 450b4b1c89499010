#include <cmath>
#include <limits>

#include "pointwise.hpp"
#include "vec_avx512.hpp"
// The kernels are written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "pointwise_passes.hpp"

namespace softgate {

PointwiseKernels avx512_pointwise(Dtype dtype) { return pointwise_of_this_isa(dtype); }

}  // namespace softgate
