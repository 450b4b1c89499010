#include "pointwise_module.hpp"

#include "address.hpp"
#include "pointwise.hpp"

namespace nb = nanobind;

namespace softgate {

void bind_pointwise(nb::module_& m) {
    m.def(
        "crrelu",
        [](int dtype, std::uintptr_t x, std::uintptr_t y, float eps, Index entries, int threads) {
            Crrelu c;
            c.x = pointer<const void>(x), c.y = pointer<void>(y);
            c.eps = eps, c.entries = entries, c.threads = threads;
            nb::gil_scoped_release release;
            crrelu(Dtype(dtype), c);
        },
        nb::arg("dtype"), nb::arg("x"), nb::arg("y"), nb::arg("eps"), nb::arg("entries"), nb::arg("threads"));
    m.def(
        "crrelu_backward",
        [](int dtype, std::uintptr_t x, std::uintptr_t dy, std::uintptr_t dx, std::uintptr_t sums, float eps,
           Index entries, Index block, int threads) {
            Crrelu c;
            c.x = pointer<const void>(x), c.dy = pointer<const void>(dy), c.dx = pointer<void>(dx);
            c.sums = pointer<double>(sums), c.eps = eps;
            c.entries = entries, c.block = block, c.threads = threads;
            nb::gil_scoped_release release;
            crrelu(Dtype(dtype), c);
        },
        nb::arg("dtype"), nb::arg("x"), nb::arg("dy"), nb::arg("dx"), nb::arg("sums"), nb::arg("eps"),
        nb::arg("entries"), nb::arg("block"), nb::arg("threads"));
}

}  // namespace softgate
