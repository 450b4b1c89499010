#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.hpp"
#include "vec_scalar.hpp"
// Attention is written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "gemm.hpp"
#include "scores.hpp"
#include "weights.hpp"
#include "forward.hpp"
#include "backward.hpp"

namespace softgate {

const AttentionKernels* scalar_attention() {
    static const AttentionKernels kernels{kPanel, pack, forward_scratch, forward, backward_scratch, backward, count};
    return &kernels;
}

}  // namespace softgate
