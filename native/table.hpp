// The table of one instruction set and one data type, filled from passes.hpp and columns.hpp.
#pragma once

namespace softgate {
namespace {

template <class T>
const KernelTable* table_of() {
    static const KernelTable table{kIsa,
                                   kWidth,
                                   kSmallVectors * kWidth,
                                   pass_max<T>,
                                   pass_has_nan<T>,
                                   pass_pair<T>,
                                   pass_online<T>,
                                   pass_exp_sum<T>,
                                   pass_exp_store<T>,
                                   pass_divide<T>,
                                   pass_write<T>,
                                   put<T>,
                                   small_rows<T>,
                                   small_grad_rows<T>,
                                   column_tile<T>,
                                   grad_sum<T>,
                                   grad_write<T>,
                                   column_grad<T>,
                                   probe};
    return &table;
}

inline const KernelTable* table_for(Dtype dtype) {
    if (dtype == Dtype::bf16) return table_of<bf16>();
    if (dtype == Dtype::f16) return table_of<f16>();
    return table_of<float>();
}

}  // namespace
}  // namespace softgate
