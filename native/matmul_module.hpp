// What Python sees of products of matrices.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_matmul(nanobind::module_& m);

}  // namespace softgate
