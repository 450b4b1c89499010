#include "vec_avx512.hpp"
// The passes are written on the lanes above.
#include "exponential.hpp"
#include "passes.hpp"
#include "columns.hpp"
#include "table.hpp"

namespace softgate {

const KernelTable* avx512_kernels(Dtype dtype) { return table_for(dtype); }

}  // namespace softgate
