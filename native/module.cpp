// Python sees plain functions of integers: addresses, sizes and the numeric values of the enumerations. The checks of
// tensors and arrays are made in Python (softgate.normalizers, softgate.numpy).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <string>

#include "attention_module.hpp"
#include "cpu.hpp"
#include "detection_module.hpp"
#include "filters_module.hpp"
#include "driver.hpp"
#include "eager.hpp"
#include "experts_module.hpp"
#include "matmul_module.hpp"
#include "pointwise_module.hpp"
#include "vocabulary_module.hpp"

namespace nb = nanobind;
using namespace softgate;

namespace {

std::atomic<int> streaming{int(Streaming::automatic)};

const void* address(std::uintptr_t p) { return reinterpret_cast<const void*>(p); }
void* writable(std::uintptr_t p) { return reinterpret_cast<void*>(p); }

Options options(int plan, bool empty_zero, int threads) {
    return {Plan(plan), Streaming(streaming.load(std::memory_order_relaxed)), empty_zero, threads};
}

template <class Work>
void without_gil(Index elements, Work work) {
    if (elements <= kReleaseAbove) return work();
    nb::gil_scoped_release release;
    work();
}

void softmax(int op, int dtype, std::uintptr_t x, std::uintptr_t y, Index outer, Index n, Index inner, int plan,
             bool empty_zero, int threads) {
    without_gil(outer * n * inner, [=] {
        run_softmax(Op(op), Dtype(dtype), address(x), writable(y), {outer, n, inner},
                    options(plan, empty_zero, threads));
    });
}

void gradient(bool log, int dtype, std::uintptr_t y, std::uintptr_t dy, std::uintptr_t dx, Index outer, Index n,
              Index inner, int threads) {
    without_gil(outer * n * inner, [=] {
        run_gradient(log, Dtype(dtype), address(y), address(dy), writable(dx), {outer, n, inner},
                     options(-1, false, threads));
    });
}

void pairs(int dtype, std::uintptr_t x, std::uintptr_t mantissa, std::uintptr_t exponent, Index rows, Index n,
           int threads) {
    without_gil(rows * n, [=] {
        run_pairs(Dtype(dtype), address(x), static_cast<float*>(writable(mantissa)),
                  static_cast<float*>(writable(exponent)), rows, n, threads);
    });
}

void probe(int kind, std::uintptr_t a, std::uintptr_t b, Index n) {
    without_gil(n, [=] {
        kernels_for(current_isa(), Dtype::f32)
            ->probe(kind, static_cast<const float*>(address(a)), static_cast<float*>(writable(b)), n);
    });
}

Isa isa_from(const std::string& name) {
    for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
        if (name == isa_name(isa)) return isa;
    throw nb::value_error(("isa must be 'avx512', 'avx2' or 'scalar', got '" + name + "'").c_str());
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "CPU kernels of softgate: softmax, its logarithm, log-sum-exp, attention, linear losses, experts, "
              "activations, suppression of boxes, single filters of convolutions, and their gradients.";
    bind_attention(m);
    bind_vocabulary(m);
    bind_experts(m);
    bind_matmul(m);
    bind_pointwise(m);
    bind_detection(m);
    bind_filters(m);
    m.def("softmax", &softmax);
    m.def("gradient", &gradient);
    m.def("pairs", &pairs);
    m.def("probe", &probe);
    m.def("bind_torch", [](nb::handle type, nb::handle capsule, nb::handle get_num_threads) {
        return bind_torch(type.ptr(), capsule.ptr(), get_num_threads.ptr());
    }, nb::arg("type"), nb::arg("capsule").none(), nb::arg("get_num_threads"));
    m.def("eager", [](int op, nb::handle x, nb::handle out, nb::handle dim) {
        return eager(op, x.ptr(), out.ptr(), dim.ptr());
    });
    m.def("choose", [](int op, int dtype, Index outer, Index n, Index inner) {
        return int(choose_algorithm(Op(op), Dtype(dtype), {outer, n, inner}));
    });
    m.def("isa", [] { return std::string(isa_name(current_isa())); });
    m.def("best_isa", [] { return std::string(isa_name(machine().isa)); });
    m.def("set_isa", [](const std::string& name) { return set_isa(isa_from(name)); });
    m.def("set_streaming", [](int mode) { streaming.store(mode < 0 ? -1 : mode > 0, std::memory_order_relaxed); });
    m.def("l2", [] { return machine().l2; });
    m.def("llc", [] { return machine().llc; });
    m.def("hardware_threads", [] { return machine().threads; });
}
