// C = A B or C += A B in float32, of factors in float32 or 16 bits, for machines whose widest vectors are those of AVX2. There the libraries behind torch
// leave a third of the processor idle in products with a few hundred rows, and have no fast product in 16 bits; with
// AVX-512 they have.
#pragma once

#include "kernels.hpp"

namespace softgate {

struct Product {
    Index m = 0, n = 0, k = 0;
    const void *a = nullptr, *b = nullptr;  // (m, k), (k, n); one stride of each is 1
    Dtype a_type = Dtype::f32, b_type = Dtype::f32;
    Index a_row = 0, a_column = 0, b_row = 0, b_column = 0;
    void* c = nullptr;  // (m, n), rows contiguous; sums are made in float and rounded once
    Dtype c_type = Dtype::f32;
    Index c_row = 0;
    bool add = false;
    int threads = 1;
};

// Whether the instruction set in use has it.
bool has_matmul();

// The bits of an entry depend on k only, not on its neighbours or the number of threads.
void matmul(const Product&);

// Rows first_row … last_row, columns first_column … last_column of C.
struct Part {
    Index first_row, last_row, first_column, last_column;
};
void matmul_avx2(const Product&, const Part&);

}  // namespace softgate
