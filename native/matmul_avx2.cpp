#include "matmul.hpp"
#include "vec_avx2.hpp"
// The products are written on the lanes above.
#include "gemm.hpp"
#include "matmul_blocks.hpp"

namespace softgate {

void matmul_avx2(const Product& p, const Part& part) { multiply_part(p, part); }

}  // namespace softgate
