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
    m.attr("lif_most_steps") = kMostSteps;
    m.def(
        "lif",
        [](int dtype, std::uintptr_t x, std::uintptr_t s, std::uintptr_t v_first, std::uintptr_t v_last, float decay,
           float gain, float threshold, bool soft, Index steps, Index entries, int threads) {
            Lif c;
            c.x = pointer<const void>(x), c.s = pointer<void>(s);
            c.v_first = pointer<const float>(v_first), c.v_last = pointer<float>(v_last);
            c.decay = decay, c.gain = gain, c.threshold = threshold, c.soft = soft;
            c.steps = steps, c.entries = entries, c.threads = threads;
            nb::gil_scoped_release release;
            lif(Dtype(dtype), c);
        },
        nb::arg("dtype"), nb::arg("x"), nb::arg("s"), nb::arg("v_first"), nb::arg("v_last"), nb::arg("decay"),
        nb::arg("gain"), nb::arg("threshold"), nb::arg("soft"), nb::arg("steps"), nb::arg("entries"),
        nb::arg("threads"));
    m.def(
        "lif_backward",
        [](int dtype, std::uintptr_t x, std::uintptr_t ds, std::uintptr_t dx, std::uintptr_t v_first,
           std::uintptr_t dv_last, std::uintptr_t dv_first, float decay, float gain, float threshold, float alpha,
           bool soft, bool detached, Index steps, Index entries, int threads) {
            Lif c;
            c.x = pointer<const void>(x), c.ds = pointer<const void>(ds), c.dx = pointer<void>(dx);
            c.v_first = pointer<const float>(v_first), c.dv_last = pointer<const float>(dv_last);
            c.dv_first = pointer<float>(dv_first);
            c.decay = decay, c.gain = gain, c.threshold = threshold, c.alpha = alpha;
            c.soft = soft, c.detached = detached;
            c.steps = steps, c.entries = entries, c.threads = threads;
            nb::gil_scoped_release release;
            lif(Dtype(dtype), c);
        },
        nb::arg("dtype"), nb::arg("x"), nb::arg("ds"), nb::arg("dx"), nb::arg("v_first"), nb::arg("dv_last"),
        nb::arg("dv_first"), nb::arg("decay"), nb::arg("gain"), nb::arg("threshold"), nb::arg("alpha"),
        nb::arg("soft"), nb::arg("detached"), nb::arg("steps"), nb::arg("entries"), nb::arg("threads"));
}

}  // namespace softgate
