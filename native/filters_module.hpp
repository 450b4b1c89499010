// What Python sees of the kernels for filters.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_filters(nanobind::module_& m);

}  // namespace softgate
