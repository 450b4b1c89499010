#include "vocabulary_module.hpp"

#include "address.hpp"
#include "vocabulary.hpp"

namespace nb = nanobind;

namespace softgate {

void bind_vocabulary(nb::module_& m) {
    // numbers: (4, rows) float64, statistics of scan and hinge; coefficients: (4, rows), top, scale, constant and
    // at_target; the first two for hinge.
    m.def(
        "vocabulary",
        [](int kind, std::uintptr_t z, Index rows, Index classes, Index stride, std::uintptr_t target,
           std::uintptr_t bias, std::uintptr_t spread, float even_spread, float softcap, float temperature,
           bool compressed, std::uintptr_t numbers, std::uintptr_t coefficients, int threads) {
            Vocabulary v;
            v.z = pointer<float>(z), v.rows = rows, v.classes = classes, v.stride = stride;
            v.target = pointer<const std::int64_t>(target);
            v.bias = pointer<const float>(bias), v.spread = pointer<const float>(spread);
            v.even_spread = even_spread, v.softcap = softcap, v.temperature = temperature, v.compressed = compressed;
            double* n = pointer<double>(numbers);
            if (n != nullptr) v.stats = {n, n + rows, n + 2 * rows, n + 3 * rows};
            const double* c = pointer<const double>(coefficients);
            if (c != nullptr) v.top = c, v.scale = c + rows;
            if (Sweep(kind) == Sweep::slopes) v.constant = c + 2 * rows, v.at_target = c + 3 * rows;
            v.threads = threads;
            nb::gil_scoped_release release;
            sweep(v, Sweep(kind));
        },
        nb::arg("kind"), nb::arg("z"), nb::arg("rows"), nb::arg("classes"), nb::arg("stride"), nb::arg("target"),
        nb::arg("bias"), nb::arg("spread"), nb::arg("even_spread"), nb::arg("softcap"), nb::arg("temperature"),
        nb::arg("compressed"), nb::arg("numbers"), nb::arg("coefficients"), nb::arg("threads"));
}

}  // namespace softgate
