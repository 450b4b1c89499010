// Attention of one block of queries of one head: tiles of scores become weights and meet the values.
#pragma once

namespace softgate {
namespace {

// A line more than the tile: rows at a power of two apart would fall on the same few lines of the cache.
constexpr Index kTileStride = kTileKeys + 16;
static_assert(kTileKeys % kPanel == 0 && kBackKeys % kPanel == 0, "tiles hold whole panels");

constexpr Index kLine = 16;  // floats in a line of the cache

struct ForwardScratch {
    float *queries, *sums, *second_sums, *second, *tiles;

    static Index size(const Attention& a) {
        const Index columns = round_up(a.value_dim, kPanel);
        return round_up(kQueryRows * a.dim, kLine) + kQueryRows * (2 * columns + kTileStride) + tile_floats(a);
    }
    // Maps that look at each row twice keep all its tiles at once where the cache holds them.
    static Index tile_floats(const Attention& a) {
        const Index rows = forward_rows(a), all = rows * round_up(a.keys, kTileKeys) / kTileKeys * kTileStride;
        return keeps_tiles(a) ? all : kQueryRows * kTileStride;
    }
    static bool keeps_tiles(const Attention& a) {
        return resident_rows(a) > 0;
    }
    ForwardScratch(const Attention& a, float* memory) {
        const Index columns = round_up(a.value_dim, kPanel);
        queries = memory;
        sums = queries + round_up(kQueryRows * a.dim, kLine);
        second_sums = sums + kQueryRows * columns;
        second = second_sums + kQueryRows * columns;
        tiles = second + kQueryRows * kTileStride;
    }
};

inline Vec gate_of(Vec logit, Gate kind) {
    const Vec s = sigmoid_of(logit);
    return kind == Gate::sigmoid ? s : fma(set(0.5f), s, set(0.5f));
}

// out = sums * factor * gate, one row.
inline void write_row(const Block& block, Index r, const float* sums, float factor) {
    const Attention& a = block.a;
    float* out = a.output + (block.row_index() + r) * a.value_dim;
    const Index n = a.value_dim;
    if (a.gating == Gate::none) {
        for (Index k = 0; k < n; ++k) out[k] = sums[k] * factor;
        return;
    }
    const float* logits = a.gate.at(block.b, block.h, block.i + r);
    if (a.gate.d == 0) {
        const float open = reduce_max(gate_of(set(*logits), a.gating));  // all lanes are equal
        for (Index k = 0; k < n; ++k) out[k] = sums[k] * factor * open;
        return;
    }
    float buffer[kWidth];
    for (Index k = 0; k < n; k += kWidth) {
        const Index have = n - k < kWidth ? n - k : kWidth;
        const float* from = logits + k * a.gate.d;
        if (a.gate.d != 1) {
            for (Index c = 0; c < have; ++c) buffer[c] = from[c * a.gate.d];
            from = buffer;
        }
        const Vec open = gate_of(load_n(from, have, 0.0f), a.gating);
        store_n(out + k, mul(mul(load_n(sums + k, have, 0.0f), set(factor)), open), have);
    }
}

template <class Map>
void forward_block(const Block& block, const float* key, const float* value, const ForwardScratch& scratch) {
    const Attention& a = block.a;
    const Index columns = round_up(a.value_dim, kPanel), rows = block.rows;
    const bool keeps = ForwardScratch::keeps_tiles(a), second = Map::kSecond && a.second != nullptr;
    pack_queries(block, scratch.queries);
    clear(scratch.sums, rows * columns);
    if (second) clear(scratch.second_sums, rows * columns);
    Map map(block);
    const Index start = block.first_key() / kTileKeys * kTileKeys, stop = block.last_key();
    const auto tile_at = [&](Index j) {
        float* where = scratch.tiles + (keeps ? (j - start) / kTileKeys * rows * kTileStride : 0);
        return Tile(block, where, kTileStride, j, std::min(kTileKeys, a.keys - j));
    };
    const auto compute = [&](const Tile& tile) {
        multiply_keys(tile, scratch.queries, a.dim, key + tile.j * a.dim);
        add_biases(block, tile);
    };
    if constexpr (Map::kSweeps == 2) {
        for (Index j = start; j < stop; j += kTileKeys) {
            const Tile tile = tile_at(j);
            compute(tile);
            map.scan(tile);
        }
        map.scanned();
    }
    for (Index j = start; j < stop; j += kTileKeys) {
        const Tile tile = tile_at(j);
        if (!keeps) compute(tile);
        if constexpr (Map::kSweeps == 2) {
            if (!keeps) map.prepare(tile);
        }
        map.weigh(tile, second ? scratch.second : nullptr, scratch.sums, columns);
        clear_unseen(tile, tile.s);
        add_product(tile, value + j * columns, columns, scratch.sums);
        if (!second) continue;
        Tile other = tile;
        other.s = scratch.second;
        clear_unseen(other, other.s);
        add_product(other, value + j * columns, columns, scratch.second_sums);
    }
    for (Index r = 0; r < rows; ++r) {
        write_row(block, r, scratch.sums + r * columns, map.finish(r));
        if constexpr (Map::kSecond) {
            if (!second) continue;
            float* out = a.second + (block.row_index() + r) * a.value_dim;
            const float factor = map.finish_second(r);
            for (Index k = 0; k < a.value_dim; ++k) out[k] = scratch.second_sums[r * columns + k] * factor;
        }
    }
}

inline Index forward_scratch(const Attention& a) { return ForwardScratch::size(a); }

inline void forward(const Attention& a, Index b, Index h, Index row, const float* key, const float* value,
                    float* memory) {
    const Block block(a, b, h, row, std::min(forward_rows(a), a.queries - row));
    const ForwardScratch scratch(a, memory);
    switch (a.weights) {
        case Weights::softmax: return forward_block<Softmax>(block, key, value, scratch);
        case Weights::sigmoid: return forward_block<Sigmoid>(block, key, value, scratch);
        case Weights::clipped: return forward_block<Clipped>(block, key, value, scratch);
        case Weights::softplus: return forward_block<Softplus>(block, key, value, scratch);
        case Weights::reweighted: return forward_block<Reweighted>(block, key, value, scratch);
    }
}

// Panels of transposed keys, and blocks of kTileKeys values in panels of features.
inline void pack(const Attention& a, Index b, Index g, float* key, float* value) {
    const Index columns = round_up(a.value_dim, kPanel);
    pack_transposed(a.key.at(b, g), a.key.t, a.key.d, a.keys, a.dim, key);
    for (Index j = 0; j < a.keys; j += kTileKeys)
        pack_panels(a.value.at(b, g, j), a.value.t, a.value.d, std::min(kTileKeys, a.keys - j), a.value_dim,
                    value + j * columns);
}

// How many keys each of a block's queries sees after all masks, by counting scores that are not -inf.
inline void count(const Attention& a, Index b, Index h, Index row, float* memory) {
    const Block block(a, b, h, row, std::min(kQueryRows, a.queries - row));
    float* counts = a.row[0] + block.row_index();
    for (Index r = 0; r < block.rows; ++r)
        counts[r] = a.mask.kind == MaskKind::none ? float(block.last[r] - block.first[r]) : 0.0f;
    if (a.mask.kind == MaskKind::none) return;
    for (Index j = block.first_key() / kTileKeys * kTileKeys; j < block.last_key(); j += kTileKeys) {
        const Tile tile(block, memory, kTileStride, j, std::min(kTileKeys, a.keys - j));
        clear(memory, block.rows * kTileStride);
        add_biases(block, tile);
        for (Index r = 0; r < block.rows; ++r) {
            Vec seen = set(0.0f);
            visit_row(tile.row(r) + tile.begin[r], tile.length(r), kMinusInfinity, [&](Vec s) {
                seen = add(seen, where_equal(s, set(kMinusInfinity), set(0.0f), set(1.0f)));
            });
            counts[r] += reduce_add(seen);
        }
    }
}

}  // namespace
}  // namespace softgate
