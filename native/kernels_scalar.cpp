#include "vec_scalar.hpp"
// The passes are written on the lanes above.
#include "exponential.hpp"
#include "passes.hpp"
#include "columns.hpp"
#include "table.hpp"

namespace softgate {

const KernelTable* scalar_kernels(Dtype dtype) { return table_for(dtype); }

}  // namespace softgate
