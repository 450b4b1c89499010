#include <cmath>
#include <limits>
#include <vector>

#include "experts.hpp"
#include "vec_avx512.hpp"
// The kernels are written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "experts_rows.hpp"

namespace softgate {

ExpertKernels avx512_experts(Dtype dtype) { return experts_of_this_isa(dtype); }

}  // namespace softgate
