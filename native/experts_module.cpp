#include "experts_module.hpp"

#include "address.hpp"
#include "experts.hpp"

namespace nb = nanobind;

namespace softgate {

void bind_experts(nb::module_& m) {
    m.def(
        "expert_rows",
        [](int kind, int dtype, std::uintptr_t segments, Index count, std::uintptr_t x, Index x_stride, std::uintptr_t w,
           std::uintptr_t bias, std::uintptr_t y, Index y_stride, Index inputs, Index outputs, int threads) {
            ExpertRows e;
            e.kind = RowProduct(kind), e.segments = pointer<const std::int64_t>(segments), e.count = count;
            e.x = pointer<void>(x), e.w = pointer<void>(w), e.y = pointer<void>(y), e.dtype = Dtype(dtype);
            e.bias = pointer<const void>(bias), e.inputs = inputs, e.outputs = outputs;
            e.x_stride = x_stride, e.y_stride = y_stride, e.threads = threads;
            nb::gil_scoped_release release;
            expert_rows(e);
        },
        nb::arg("kind"), nb::arg("dtype"), nb::arg("segments"), nb::arg("count"), nb::arg("x"), nb::arg("x_stride"), nb::arg("w"),
        nb::arg("bias"), nb::arg("y"), nb::arg("y_stride"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("threads"));
    // Without da: a from h. With da: w a, dh and dw from h, da and w.
    m.def(
        "swiglu",
        [](int dtype, std::uintptr_t h, Index h_stride, std::uintptr_t a, Index a_stride, std::uintptr_t da, Index da_stride,
           std::uintptr_t dh, Index dh_stride, std::uintptr_t w, std::uintptr_t dw, Index rows, Index features, int threads) {
            SwiGlu s;
            s.h = pointer<const void>(h), s.da = pointer<const void>(da), s.dtype = Dtype(dtype);
            s.a = pointer<void>(a), s.dh = pointer<void>(dh), s.rows = rows, s.features = features;
            s.h_stride = h_stride, s.a_stride = a_stride, s.da_stride = da_stride, s.dh_stride = dh_stride;
            s.w = pointer<const float>(w), s.dw = pointer<float>(dw), s.threads = threads;
            nb::gil_scoped_release release;
            swiglu(s);
        },
        nb::arg("dtype"), nb::arg("h"), nb::arg("h_stride"), nb::arg("a"), nb::arg("a_stride"), nb::arg("da"), nb::arg("da_stride"),
        nb::arg("dh"), nb::arg("dh_stride"), nb::arg("w"), nb::arg("dw"), nb::arg("rows"), nb::arg("features"), nb::arg("threads"));
}

}  // namespace softgate
