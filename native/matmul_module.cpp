#include "matmul_module.hpp"

#include "address.hpp"
#include "matmul.hpp"

namespace nb = nanobind;

namespace softgate {

void bind_matmul(nb::module_& m) {
    m.def("has_matmul", &has_matmul);
    m.def(
        "matmul",
        [](int a_type, std::uintptr_t a, Index a_row, Index a_column, int b_type, std::uintptr_t b, Index b_row,
           Index b_column, int c_type, std::uintptr_t c, Index c_row, Index rows, Index columns, Index inner, bool add, int threads) {
            Product p;
            p.m = rows, p.n = columns, p.k = inner;
            p.a = pointer<const void>(a), p.a_type = Dtype(a_type), p.a_row = a_row, p.a_column = a_column;
            p.b = pointer<const void>(b), p.b_type = Dtype(b_type), p.b_row = b_row, p.b_column = b_column;
            p.c = pointer<void>(c), p.c_type = Dtype(c_type), p.c_row = c_row, p.add = add, p.threads = threads;
            nb::gil_scoped_release release;
            matmul(p);
        },
        nb::arg("a_type"), nb::arg("a"), nb::arg("a_row"), nb::arg("a_column"), nb::arg("b_type"), nb::arg("b"),
        nb::arg("b_row"), nb::arg("b_column"),
        nb::arg("c_type"), nb::arg("c"), nb::arg("c_row"), nb::arg("rows"), nb::arg("columns"), nb::arg("inner"), nb::arg("add"),
        nb::arg("threads"));
}

}  // namespace softgate
