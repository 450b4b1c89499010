// What Python sees of the activations.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_pointwise(nanobind::module_& m);

}  // namespace softgate
