#include "eager.hpp"

#include <cstdlib>
#include <cstring>

#include "cpu.hpp"
#include "driver.hpp"

namespace softgate {
namespace {

// The part of DLPack 1.x that is used here, as its specification lays it out (dmlc/dlpack, dlpack.h).
struct Tensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t ndim;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

struct Exchange {
    std::uint32_t major, minor;
    Exchange* older;
    void* unused[3];
    int (*borrow)(void* object, Tensor* out);
};

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kFloat = 2, kBfloat = 4;
constexpr Index kAskForThreads = 131072;  // smaller calls run on one thread anyway

const Exchange* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;
PyObject* get_num_threads = nullptr;
PyObject* requires_grad = nullptr;

bool borrow(PyObject* object, Tensor& out) {
    if (exchange->borrow(object, &out) == 0) return true;
    PyErr_Clear();  // no storage (a functorch wrapper), sparse, nested: the long way says what is wrong
    return false;
}

bool needs_gradient(PyObject* tensor) {
    PyObject* value = PyObject_GetAttr(tensor, requires_grad);
    if (value == nullptr) {
        PyErr_Clear();
        return true;
    }
    Py_DECREF(value);
    return value != Py_False;
}

bool kernels_are_off() {
    const char* wanted = std::getenv("SOFTGATE_KERNELS");
    return wanted != nullptr && *wanted != '\0' && std::strcmp(wanted, "auto") != 0 && std::strcmp(wanted, "native") != 0;
}

bool same_plain_layout(const Tensor& x, const Tensor& out) {
    if (x.device_type != kCpu || out.device_type != kCpu || x.lanes != 1 || x.ndim < 1 || x.ndim != out.ndim) return false;
    if (x.code != out.code || x.bits != out.bits) return false;
    std::int64_t step = 1;
    for (int i = x.ndim - 1; i >= 0; --i) {
        const std::int64_t size = x.shape[i];
        if (size != out.shape[i] || size == 0) return false;
        if (size != 1 && (x.strides[i] != step || out.strides[i] != step)) return false;
        step *= size;
    }
    return true;
}

int threads_for(Index elements) {
    if (elements < kAskForThreads) return 1;
    PyObject* value = PyObject_CallNoArgs(get_num_threads);
    const long threads = value == nullptr ? 1 : PyLong_AsLong(value);
    Py_XDECREF(value);
    PyErr_Clear();
    return threads < 1 ? 1 : int(threads);
}

}  // namespace

bool bind_torch(PyObject* type, PyObject* capsule, PyObject* threads) {
    if (!PyCapsule_IsValid(capsule, "dlpack_exchange_api") || !PyType_Check(type)) return false;
    auto* api = static_cast<Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    while (api != nullptr && api->major != 1) api = api->older;
    if (api == nullptr || api->borrow == nullptr) return false;
    Py_INCREF(type);  // kept for the life of the process, as the module is
    Py_INCREF(threads);
    tensor_type = reinterpret_cast<PyTypeObject*>(type);
    get_num_threads = threads;
    requires_grad = PyUnicode_InternFromString("requires_grad");
    exchange = api;
    return requires_grad != nullptr;
}

bool eager(int op, PyObject* x, PyObject* out, PyObject* dim_object) {
    if (exchange == nullptr || Py_TYPE(x) != tensor_type || Py_TYPE(out) != tensor_type) return false;
    if (current_isa() == Isa::scalar || kernels_are_off() || needs_gradient(x) || needs_gradient(out)) return false;
    Tensor a, b;
    if (!borrow(x, a) || !borrow(out, b) || !same_plain_layout(a, b)) return false;
    if (!PyLong_CheckExact(dim_object)) return false;
    Py_ssize_t dim = PyLong_AsSsize_t(dim_object);
    if (dim == -1 && PyErr_Occurred()) {
        PyErr_Clear();  // an int beyond ssize_t
        return false;
    }
    if (dim < 0) dim += a.ndim;
    if (dim < 0 || dim >= a.ndim) return false;
    const bool half = a.bits == 16;
    if (!(a.code == kFloat && (a.bits == 32 || half)) && !(a.code == kBfloat && half)) return false;
    const Dtype dtype = !half ? Dtype::f32 : a.code == kBfloat ? Dtype::bf16 : Dtype::f16;
    Shape shape{1, a.shape[dim], 1};
    for (Py_ssize_t i = 0; i < dim; ++i) shape.outer *= a.shape[i];
    for (Py_ssize_t i = dim + 1; i < a.ndim; ++i) shape.inner *= a.shape[i];
    const char* from = static_cast<char*>(a.data) + a.byte_offset;
    char* to = static_cast<char*>(b.data) + b.byte_offset;
    const Index bytes = shape.size() * size_of(dtype);
    if (from != to && from < to + bytes && to < from + bytes) return false;
    Options options;
    options.threads = threads_for(shape.size());
    if (shape.size() <= kReleaseAbove) {
        run_softmax(Op(op), dtype, from, to, shape, options);
    } else {
        Py_BEGIN_ALLOW_THREADS
        run_softmax(Op(op), dtype, from, to, shape, options);
        Py_END_ALLOW_THREADS
    }
    return true;
}

}  // namespace softgate
