// What Python sees of the kernels for detection.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_detection(nanobind::module_& m);

}  // namespace softgate
