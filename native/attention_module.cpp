#include "attention_module.hpp"

#include <nanobind/stl/array.h>

#include <array>

#include "attention.hpp"

namespace nb = nanobind;

namespace softgate {
namespace {

using Operand = std::array<Index, 5>;  // address, strides

template <class T>
T* pointer(Index address) {
    return reinterpret_cast<T*>(std::uintptr_t(address));
}

View view(const Operand& o) { return {pointer<const float>(o[0]), o[1], o[2], o[3], o[4]}; }

// A field of Attention that is an address in Python.
template <class T>
auto set_pointer(T* Attention::*field) {
    return [field](Attention& a, Index address) { a.*field = pointer<T>(address); };
}
auto set_view(View Attention::*field) {
    return [field](Attention& a, const Operand& operand) { a.*field = view(operand); };
}

template <void (*Run)(const Attention&)>
void run(const Attention& a) {
    nb::gil_scoped_release release;
    Run(a);
}

}  // namespace

void bind_attention(nb::module_& m) {
    nb::class_<Attention>(m, "Attention")
        .def(nb::init<>())
        .def("sizes", [](Attention& a, const std::array<Index, 7>& n) {
            a.batch = n[0], a.heads = n[1], a.groups = n[2], a.queries = n[3];
            a.keys = n[4], a.dim = n[5], a.value_dim = n[6];
        })
        .def("query", set_view(&Attention::query))
        .def("key", set_view(&Attention::key))
        .def("value", set_view(&Attention::value))
        .def("mask", [](Attention& a, const Operand& o, bool boolean) {
            a.mask = {pointer<const void>(o[0]), o[1], o[2], o[3], o[4],
                      boolean ? MaskKind::boolean : MaskKind::additive};
        })
        .def("gate", [](Attention& a, const Operand& o, int kind) {
            a.gate = view(o);
            a.gating = Gate(kind);
        })
        .def("weights", [](Attention& a, int kind) { a.weights = Weights(kind); })
        .def_rw("left", &Attention::left)
        .def_rw("right", &Attention::right)
        .def_rw("scale", &Attention::scale)
        .def_rw("gamma", &Attention::gamma)
        .def_rw("zeta", &Attention::zeta)
        .def_rw("power", &Attention::power)
        .def_rw("threads", &Attention::threads)
        .def("slopes", set_pointer(&Attention::slopes))
        .def("row_scale", set_pointer(&Attention::row_scale))
        .def("head_bias", set_pointer(&Attention::head_bias))
        .def("counts", set_pointer(&Attention::count))
        .def("offset", set_pointer(&Attention::offset))
        .def("output", set_pointer(&Attention::output))
        .def("second", set_pointer(&Attention::second))
        .def("row", [](Attention& a, int k, Index address) { a.row[k] = pointer<float>(address); })
        .def("grad_output", set_view(&Attention::grad_output))
        .def("delta", set_pointer(&Attention::delta))
        .def("extra", set_pointer(&Attention::extra))
        .def("grad_query", set_pointer(&Attention::grad_query))
        .def("grad_key", set_pointer(&Attention::grad_key))
        .def("grad_value", set_pointer(&Attention::grad_value))
        .def("grad_bias", set_pointer(&Attention::grad_bias));
    m.def("attend", &run<attend>);
    m.def("attend_backward", &run<attend_backward>);
    m.def("count_keys", &run<count_keys>);
}

}  // namespace softgate
