// What Python sees of the kernels for experts.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_experts(nanobind::module_& m);

}  // namespace softgate
