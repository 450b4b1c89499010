// Attention for Python: an object whose fields are set to addresses and numbers, and three functions that run it.
#pragma once

#include <nanobind/nanobind.h>

namespace softgate {

void bind_attention(nanobind::module_& m);

}  // namespace softgate
