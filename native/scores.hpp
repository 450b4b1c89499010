// One tile of scores: which keys each row sees, the product with the keys, masks and position biases.
#pragma once

namespace softgate {
namespace {

// Rows of queries i .. i + rows - 1 of one head and the keys [first, last) that each may see.
struct Block {
    const Attention& a;
    Index b, h, i, rows;
    Index first[kBackRows], last[kBackRows];

    Block(const Attention& call, Index batch, Index head, Index row, Index n)
        : a(call), b(batch), h(head), i(row), rows(n) {
        for (Index r = 0; r < n; ++r) first[r] = a.first_key(i + r), last[r] = a.last_key(i + r);
    }
    // Both ends grow with the row.
    Index first_key() const { return first[0]; }
    Index last_key() const { return last[rows - 1]; }
    Index row_index() const { return a.row_index(b, h, i); }
};

// Scores of a block's rows against keys j .. j + n - 1; row r holds meaningful entries in [begin[r], end[r]).
struct Tile {
    float* s;
    Index ld, j, n, rows;
    bool full;  // every row sees every key
    Index begin[kBackRows], end[kBackRows];

    Tile(const Block& block, float* where, Index stride, Index key, Index keys)
        : s(where), ld(stride), j(key), n(keys), rows(block.rows), full(true) {
        for (Index r = 0; r < rows; ++r) {
            begin[r] = inside(block.first[r]), end[r] = inside(block.last[r]);
            full &= begin[r] == 0 && end[r] == n;
        }
    }
    float* row(Index r) const { return s + r * ld; }
    Index length(Index r) const { return end[r] - begin[r]; }
    // The keys that any of the rows r .. r + count - 1 sees.
    Index low(Index r) const { return begin[r]; }
    Index high(Index r, Index count) const { return end[r + count - 1]; }
    // The rows [from, to) that see any of the keys k .. k + count - 1.
    Index from_row(Index k) const {
        Index r = 0;
        while (r < rows && end[r] <= k) ++r;
        return r;
    }
    Index to_row(Index k) const {
        Index r = rows;
        while (r > 0 && begin[r - 1] >= k) --r;
        return r;
    }

  private:
    Index inside(Index key) const { return key < j ? 0 : key > j + n ? n : key - j; }
};

inline Index strip_rows(Index left) { return left < kGemmRows ? left : kGemmRows; }

// What is added to the scores of one row, -inf where the mask forbids; written to buffer unless it lies ready.
inline const float* bias_row(const Block& block, const Tile& tile, Index r, Index begin, Index end, float* buffer) {
    const Attention& a = block.a;
    const Index i = block.i + r;
    const Index offset = block.b * a.mask.b + block.h * a.mask.h + i * a.mask.t + tile.j * a.mask.s;
    if (a.mask.kind == MaskKind::additive) {
        const float* m = static_cast<const float*>(a.mask.data) + offset;
        if (a.mask.s == 1 && a.slopes == nullptr) return m;
        for (Index k = begin; k < end; ++k) buffer[k] = m[k * a.mask.s];
    } else if (a.mask.kind == MaskKind::boolean) {
        const unsigned char* m = static_cast<const unsigned char*>(a.mask.data) + offset;
        if (a.mask.s == 1) {
            for (Index k = begin; k < end; ++k) buffer[k] = m[k] ? 0.0f : kMinusInfinity;
        } else {
            for (Index k = begin; k < end; ++k) buffer[k] = m[k * a.mask.s] ? 0.0f : kMinusInfinity;
        }
    } else {
        clear(buffer + begin, end - begin);
    }
    if (a.slopes != nullptr) {
        const Vec slope = set(a.slopes[block.b * a.heads + block.h]);
        Vec distance = sub(set(float(i + a.keys - a.queries - tile.j - begin)), count_up());
        map_row(buffer + begin, end - begin, 0.0f, [&](Vec bias) {
            const Vec result = fma(slope, negative_abs(distance), bias);
            distance = sub(distance, set(float(kWidth)));
            return result;
        });
    }
    return buffer;
}

inline void add_biases(const Block& block, const Tile& tile) {
    const Attention& a = block.a;
    if (a.mask.kind == MaskKind::none && a.slopes == nullptr) return;
    float buffer[kTileKeys];
    const float* bias = nullptr;
    const bool shared = a.mask.t == 0 && a.slopes == nullptr;  // one row of bias for all queries, as for padding
    for (Index r = 0; r < tile.rows; ++r) {
        const Index begin = tile.begin[r], n = tile.length(r);
        if (n == 0) continue;
        if (!shared) bias = bias_row(block, tile, r, begin, tile.end[r], buffer);
        else if (bias == nullptr) bias = bias_row(block, tile, r, 0, tile.n, buffer);
        const float* from = bias + begin;
        const Vec closed = set(kMinusInfinity);
        float* s = tile.row(r) + begin;
        Index k = 0;
        for (; k + kWidth <= n; k += kWidth) {
            const Vec m = load(from + k);
            store(s + k, where_equal(m, closed, closed, add(load(s + k), m)));
        }
        if (k == n) continue;
        const Vec m = load_n(from + k, n - k, 0.0f);
        store_n(s + k, where_equal(m, closed, closed, add(load_n(s + k, n - k, 0.0f), m)), n - k);
    }
}

// Whether row r may see any key at all: tells a row without keys from one whose scores are all -inf.
inline bool sees_a_key(const Block& block, Index r) {
    const Attention& a = block.a;
    if (a.mask.kind == MaskKind::none) return block.first[r] < block.last[r];
    const Index offset = block.b * a.mask.b + block.h * a.mask.h + (block.i + r) * a.mask.t;
    for (Index k = block.first[r]; k < block.last[r]; ++k) {
        const Index at = offset + k * a.mask.s;
        if (a.mask.kind == MaskKind::boolean ? static_cast<const unsigned char*>(a.mask.data)[at] != 0
                                             : static_cast<const float*>(a.mask.data)[at] != kMinusInfinity)
            return true;
    }
    return false;
}

// tile = x yᵀ, x (rows, d) contiguous and y in transposed panels, only where a row sees a key.
inline void multiply_keys(const Tile& tile, const float* x, Index d, const float* y) {
    for (Index k = 0; k < tile.n; k += kPanel, y += d * kPanel) {
        for (Index r = 0; r < tile.rows; r += kGemmRows) {
            const Index count = strip_rows(tile.rows - r);
            if (tile.high(r, count) <= k || tile.low(r) >= k + kPanel) continue;
            strip_of<false, false>(count, d, x + r * d, d, y, tile.row(r) + k, tile.ld);
        }
    }
}

// sums (rows, dp) += tile y, y in panels over its columns.
inline void add_product(const Tile& tile, const float* y, Index columns, float* sums) {
    for (Index c = 0; c < columns; c += kPanel, y += tile.n * kPanel) {
        for (Index r = 0; r < tile.rows; r += kGemmRows) {
            const Index count = strip_rows(tile.rows - r), low = tile.low(r), high = tile.high(r, count);
            if (low >= high) continue;
            strip_of<false, true>(count, high - low, tile.row(r) + low, tile.ld, y + low * kPanel,
                                  sums + r * columns + c, columns);
        }
    }
}

// sums (keys, dp) += tileᵀ x, x (rows, ·) in panels over its columns.
inline void add_transposed_product(const Tile& tile, const float* x, Index columns, float* sums) {
    for (Index c = 0; c < columns; c += kPanel, x += tile.rows * kPanel) {
        for (Index k = 0; k < tile.n; k += kGemmRows) {
            const Index count = strip_rows(tile.n - k), from = tile.full ? 0 : tile.from_row(k);
            const Index to = tile.full ? tile.rows : tile.to_row(k + count);
            if (from >= to) continue;
            strip_of<true, true>(count, to - from, tile.row(from) + k, tile.ld, x + from * kPanel,
                                 sums + k * columns + c, columns);
        }
    }
}

// Entries that a row does not see count nothing in products over the whole tile.
inline void clear_unseen(const Tile& tile, float* s) {
    if (tile.full) return;
    for (Index r = 0; r < tile.rows; ++r, s += tile.ld) {
        clear(s, tile.begin[r]);
        clear(s + tile.end[r], tile.n - tile.end[r]);
    }
}

// Rows of queries times their scale, contiguous.
inline void pack_queries(const Block& block, float* out) {
    const Attention& a = block.a;
    float factor[kBackRows];
    const float* rows = a.row_scale == nullptr ? nullptr : a.row_scale + block.row_index();
    for (Index r = 0; r < block.rows; ++r) factor[r] = rows == nullptr ? a.scale : a.scale * rows[r];
    pack_rows(a.query.at(block.b, block.h, block.i), a.query.t, a.query.d, block.rows, a.dim, factor, out);
}

}  // namespace
}  // namespace softgate
