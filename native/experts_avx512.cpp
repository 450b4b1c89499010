#include <cmath>
#include <limits>

#include "experts.hpp"
#include "vec_avx512.hpp"
// The kernels are written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "experts_rows.hpp"

namespace softgate {

ExpertKernels avx512_experts() { return experts_of_this_isa(); }

}  // namespace softgate
