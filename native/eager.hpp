// The short way from a torch.softmax-like call to the kernels, for rows so short that the call itself is the cost.
#pragma once

#include <Python.h>

namespace softgate {

// Remembers torch's tensor type, its DLPack exchange capsule (None where torch has none) and torch.get_num_threads.
// Returns whether the short way can be used.
bool bind_torch(PyObject* tensor_type, PyObject* capsule, PyObject* get_num_threads);

// Runs softmax (op 0) or log_softmax (op 1) of x into out if both are plain contiguous CPU tensors of one kernel dtype
// and shape, need no gradient and do not overlap except exactly. False: nothing was done, take the long way.
bool eager(int op, PyObject* x, PyObject* out, PyObject* dim);

}  // namespace softgate
