#include <cmath>
#include <limits>
#include <vector>

#include "experts.hpp"
#include "vec_scalar.hpp"
// The kernels are written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "experts_rows.hpp"

namespace softgate {

ExpertKernels scalar_experts(Dtype dtype) { return experts_of_this_isa(dtype); }

}  // namespace softgate
