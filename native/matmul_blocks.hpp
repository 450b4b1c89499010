// A product of matrices in blocks that fit the caches, on the lanes that were included before. A block of A stays in the
// second-level cache, a panel of B in the first; both are copied into the order in which the registers want them, but for
// rows of float32 in A, which are read where they are.
#pragma once

#include <memory>
#include <type_traits>
#include <vector>

namespace softgate {
namespace {

constexpr Index kBlockInner = 256, kBlockRows = 144, kBlockColumns = 256;
constexpr Index kRounded = 8 * kBlockRows;  // rows of sums that are kept until they are rounded to 16 bits
static_assert(kBlockRows % kGemmRows == 0 && kBlockColumns % kPanel == 0, "blocks hold whole strips and panels");

inline Index at_most(Index n, Index most) { return n < most ? n : most; }

// Entry (i, j) of a matrix is x[i * across + j * along]; one of the strides is 1.
template <class T>
struct View {
    const T* x;
    Index across, along;
    View from(Index i, Index j) const { return {x + i * across + j * along, across, along}; }
};

// Groups of kWidth lines are transposed in registers; lines that are missing are 0.
template <Index Lines, class T>
inline void pack_lines(const View<T>& v, Index have, Index inner, float* out) {
    Index j = 0;
    for (; j + kWidth <= inner; j += kWidth)
        for (Index i = 0; i < Lines; i += kWidth) {
            Vec square[kWidth];
            for (Index r = 0; r < kWidth; ++r)
                square[r] = i + r < have ? load(v.x + (i + r) * v.across + j) : set(0.0f);
            transpose(square);
            // With fewer Lines than lanes each store runs into the place of the next, which then overwrites it.
            for (Index r = 0; r < kWidth; ++r) store(out + (j + r) * Lines + i, square[r]);
        }
    if (j == inner) return;
    float rest[kWidth];
    for (Index i = 0; i < Lines; ++i) {
        store(rest, i < have ? load_n(v.x + i * v.across + j, inner - j, 0.0f) : set(0.0f));
        for (Index k = j; k < inner; ++k) out[k * Lines + i] = rest[k - j];
    }
}

// Entry j of a group is stored before entry j + 1: a vector that is longer than Lines runs into the place of the next,
// which overwrites it; only the last entry of a group (``last``) may not.
template <Index Lines, class T>
inline void pack_columns(const View<T>& v, Index have, Index inner, bool last, float* out) {
    constexpr Index rest = Lines % kWidth;
    for (Index j = 0; j < inner; ++j, out += Lines)
        for (Index i = 0; i < Lines; i += kWidth) {
            const T* from = v.x + j * v.along + i;
            const Index there = at_most(have - i, kWidth);
            const Vec x = there == kWidth ? load(from) : there > 0 ? load_n(from, there, 0.0f) : set(0.0f);
            if (rest == 0 || i + kWidth <= Lines || !last || j + 1 < inner)
                store(out + i, x);
            else
                store_n(out + i, x, rest);
        }
}

// (count, inner) -> groups of so many Lines, each (inner, Lines).
template <Index Lines, class T>
inline void pack(const View<T>& v, Index count, Index inner, float* out) {
    // Columns are read a few at a time for all groups: their next entries lie in the same line of the cache.
    const Index step = v.along == 1 ? inner : 8;
    for (Index j = 0; j < inner; j += step) {
        const Index part = inner - j < step ? inner - j : step;
        for (Index i = 0; i < count; i += Lines) {
            const Index have = count - i;
            float* to = out + i * inner + j * Lines;
            if (v.along == 1)
                pack_lines<Lines>(v.from(i, j), at_most(have, Lines), part, to);
            else
                pack_columns<Lines>(v.from(i, j), have, part, j + part == inner, to);
        }
    }
}

// What of B is copied next, fetched bit by bit while the registers work on what has been copied.
struct Ahead {
    const char* first = nullptr;
    Index rows = 0, row = 0, bytes = 0;  // so many bytes of every row
    Index steps = 1, step = 0;

    template <class T>
    Ahead(const View<T>& v, Index count, Index inner, Index steps_) : first(reinterpret_cast<const char*>(v.x)) {
        const bool lines = v.along == 1;
        rows = lines ? count : inner, row = (lines ? v.across : v.along) * Index(sizeof(T));
        bytes = (lines ? inner : count) * Index(sizeof(T)), steps = steps_;
    }
    void fetch() {
        constexpr Index line = 64;
        const Index per_row = (bytes + line - 1) / line, all = per_row * rows;
        for (Index t = all * step / steps; t < all * (step + 1) / steps; ++t)
            prefetch_far(first + t / per_row * row + t % per_row * line);
        ++step;
    }
};

// Rows of A as the registers read them: copied into groups of kGemmRows, or where they are.
struct Left {
    const float* x;
    Index row;  // 0: copied
    Left from(Index i, Index inner) const { return {x + i * (row == 0 ? inner : row), row}; }
};

template <bool Add>
inline void strip_of(Index rows, Index inner, const Left& a, const float* b, float* c, Index c_row) {
    if (a.row == 0) return strip_of<true, Add>(rows, inner, a.x, kGemmRows, b, c, c_row);
    strip_of<false, Add>(rows, inner, a.x, a.row, b, c, c_row);
}

template <bool Add>
inline void tile(Index rows, Index columns, Index inner, const Left& a, const float* b, float* c, Index c_row) {
    if (columns == kPanel) return strip_of<Add>(rows, inner, a, b, c, c_row);
    float whole[kGemmRows * kPanel];
    strip_of<false>(rows, inner, a, b, whole, kPanel);
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < columns; ++j)
            c[i * c_row + j] = Add ? c[i * c_row + j] + whole[i * kPanel + j] : whole[i * kPanel + j];
}

// The rows of a block of A with one panel of B.
template <bool Add>
inline void panel(Index rows, Index columns, Index inner, const Left& a, const float* b, float* c, Index c_row,
                  Ahead& ahead) {
    for (Index i = 0; i < rows; i += kGemmRows) {
        for (Index r = i + kGemmRows; r < rows && r < i + 2 * kGemmRows; ++r) prefetch(c + r * c_row);
        ahead.fetch();
        tile<Add>(at_most(rows - i, kGemmRows), columns, inner, a.from(i, inner), b, c + i * c_row, c_row);
    }
}

// Room for the copies of one thread; a last store of pack_lines runs over its end by less than a vector.
inline float* room() {
    constexpr Index size = kBlockInner * (kBlockRows + kBlockColumns) + kWidth;
    thread_local std::unique_ptr<float[]> memory(new float[size + 16]);
    return memory.get() + (64 - reinterpret_cast<std::uintptr_t>(memory.get()) % 64) % 64 / sizeof(float);
}

// Where the sums of a part go.
struct Target {
    float* c;  // of the part's first row and column
    Index row;
    bool add;
};

// One block of columns and of the inner dimension. Where B is transposed its panels are copied one by one, for the first
// rows that need them; else all at once, because their rows are one stream of memory.
template <class A, class B>
void multiply_block(const Product& p, const Part& part, const Target& to, Index k, Index inner) {
    float *b = room(), *a = b + kBlockInner * kBlockColumns;
    const View<A> left{static_cast<const A*>(p.a), p.a_row, p.a_column};
    const View<B> right{static_cast<const B*>(p.b), p.b_column, p.b_row};
    const Index columns = part.last_column - part.first_column;
    const bool lines = right.along == 1;
    const auto run = to.add || k > 0 ? panel<true> : panel<false>;
    if (!lines) pack<kPanel>(right.from(part.first_column, k), columns, inner, b);
    const bool in_place = std::is_same_v<A, float> && left.along == 1;
    for (Index i = part.first_row; i < part.last_row; i += kBlockRows) {
        const Index rows = at_most(part.last_row - i, kBlockRows), strips = (rows + kGemmRows - 1) / kGemmRows;
        const Index steps = strips * ((columns + kPanel - 1) / kPanel);
        const bool first = i == part.first_row;
        Left l{a, 0};
        if (in_place) l = {reinterpret_cast<const float*>(left.from(i, k).x), left.across};
        else pack<kGemmRows>(left.from(i, k), rows, inner, a);
        const Index after = first ? at_most(p.k - k - inner, inner) : 0;
        Ahead ahead(right.from(part.first_column, k + inner), columns, after, steps);
        if (in_place) ahead = Ahead(left.from(i + kBlockRows, k), at_most(part.last_row - i - rows, kBlockRows), inner, steps);
        for (Index j = 0; j < columns; j += kPanel) {
            const Index width = at_most(columns - j, kPanel);
            if (lines && first) {
                pack<kPanel>(right.from(part.first_column + j, k), width, inner, b + j * inner);
                const bool last = j + kPanel >= columns;
                ahead = Ahead(right.from(part.first_column + (last ? 0 : j + kPanel), last ? k + inner : k),
                              at_most(last ? columns : columns - j - kPanel, kPanel), last ? after : inner, strips);
            }
            run(rows, width, inner, l, b + j * inner, to.c + (i - part.first_row) * to.row + j, to.row, ahead);
        }
    }
}

template <class A, class B>
void multiply_columns(const Product& p, const Part& part, const Target& to) {
    for (Index k = 0; k < p.k; k += kBlockInner) multiply_block<A, B>(p, part, to, k, at_most(p.k - k, kBlockInner));
}

// Through memory of this thread, which is rounded at last.
template <class A, class B, class C>
void multiply_rounded(const Product& p, const Part& part) {
    thread_local std::vector<float> memory;
    const Index n = part.last_column - part.first_column;
    memory.resize(std::size_t(kRounded * kBlockColumns));
    for (Index i = part.first_row; i < part.last_row; i += kRounded) {
        const Index last = at_most(part.last_row, i + kRounded);
        multiply_columns<A, B>(p, {i, last, part.first_column, part.last_column}, {memory.data(), n, false});
        for (Index r = i; r < last; ++r) {
            const float* sums = memory.data() + (r - i) * n;
            C* c = static_cast<C*>(p.c) + r * p.c_row + part.first_column;
            for (Index j = 0; j < n; j += kWidth) {
                const Index lanes = at_most(n - j, kWidth);
                const Vec sum = load_n(sums + j, lanes, 0.0f);
                store_n(c + j, p.add ? add(sum, load_n(c + j, lanes, 0.0f)) : sum, lanes);
            }
        }
    }
}

template <class A, class B>
void multiply_typed(const Product& p, const Part& part) {
    for (Index j = part.first_column; j < part.last_column; j += kBlockColumns) {
        const Part columns{part.first_row, part.last_row, j, at_most(part.last_column, j + kBlockColumns)};
        if (p.c_type == Dtype::bf16) {
            multiply_rounded<A, B, bf16>(p, columns);
        } else if (p.c_type == Dtype::f16) {
            multiply_rounded<A, B, f16>(p, columns);
        } else {
            float* c = static_cast<float*>(p.c) + part.first_row * p.c_row + j;
            multiply_columns<A, B>(p, columns, {c, p.c_row, p.add});
        }
    }
}

template <class A>
void multiply_left(const Product& p, const Part& part) {
    if (p.b_type == Dtype::bf16) return multiply_typed<A, bf16>(p, part);
    if (p.b_type == Dtype::f16) return multiply_typed<A, f16>(p, part);
    multiply_typed<A, float>(p, part);
}

void multiply_part(const Product& p, const Part& part) {
    if (p.a_type == Dtype::bf16) return multiply_left<bf16>(p, part);
    if (p.a_type == Dtype::f16) return multiply_left<f16>(p, part);
    multiply_left<float>(p, part);
}

}  // namespace
}  // namespace softgate
