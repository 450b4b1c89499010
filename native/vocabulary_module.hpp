// What Python sees of the sweeps over a block of logits.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_vocabulary(nanobind::module_& m);

}  // namespace softgate
