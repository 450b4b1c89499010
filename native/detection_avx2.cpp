#include <cmath>
#include <limits>

#include "detection.hpp"
#include "vec_avx2.hpp"
// The kernels are written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "detection_groups.hpp"

namespace softgate {

DetectionKernels avx2_detection() { return detection_of_this_isa(); }

}  // namespace softgate
