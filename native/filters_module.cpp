#include "filters_module.hpp"

#include <nanobind/stl/pair.h>

#include <utility>

#include "address.hpp"
#include "filters.hpp"

namespace nb = nanobind;

namespace softgate {
namespace {

using Pair = std::pair<Index, Index>;

}  // namespace

void bind_filters(nb::module_& m) {
    m.def(
        "some_filters",
        [](std::uintptr_t x, std::uintptr_t which, Index channels, Pair size, std::uintptr_t weight,
           std::uintptr_t bias, Index row, std::uintptr_t filters, Index count, Pair kernel, Pair stride, Pair padding,
           Pair dilation, std::uintptr_t out, Pair out_size, int threads) {
            SomeFilters f;
            f.x = pointer<const float>(x), f.which = pointer<const std::int64_t>(which), f.channels = channels;
            f.height = size.first, f.width = size.second;
            f.weight = pointer<const float>(weight), f.bias = pointer<const float>(bias), f.row = row;
            f.filters = pointer<const std::int64_t>(filters), f.count = count;
            f.kernel_height = kernel.first, f.kernel_width = kernel.second;
            f.stride_height = stride.first, f.stride_width = stride.second;
            f.pad_height = padding.first, f.pad_width = padding.second;
            f.dilation_height = dilation.first, f.dilation_width = dilation.second;
            f.out = pointer<float>(out), f.out_height = out_size.first, f.out_width = out_size.second;
            f.threads = threads;
            nb::gil_scoped_release release;
            some_filters(f);
        },
        nb::arg("x"), nb::arg("which"), nb::arg("channels"), nb::arg("size"), nb::arg("weight"), nb::arg("bias"),
        nb::arg("row"), nb::arg("filters"), nb::arg("count"), nb::arg("kernel"), nb::arg("stride"), nb::arg("padding"),
        nb::arg("dilation"), nb::arg("out"), nb::arg("out_size"), nb::arg("threads"));
}

}  // namespace softgate
