#include <cmath>
#include <limits>

#include "vocabulary.hpp"
#include "vec_scalar.hpp"
// The sweeps are written on the lanes above.
#include "exponential.hpp"
#include "elementary.hpp"
#include "vocabulary_rows.hpp"

namespace softgate {

RowSweep scalar_vocabulary() { return sweep_row; }

}  // namespace softgate
