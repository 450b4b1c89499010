// Softmax along a strided dimension: vector lanes are neighbouring columns, so every reduction is per lane and nothing
// is ever merged across lanes. A tile is K vectors of columns; the last vector may be partly filled.
#pragma once

namespace softgate {
namespace {

constexpr Index kRowBlock = 16;  // rows whose partial sums are plain floats before they are folded

template <class T, Index K>
struct TileReader {
    const T* x;
    Index stride;
    Index last;  // columns in the last vector

    Vec operator()(Index row, Index k) const {
        const T* p = x + row * stride + k * kWidth;
        return k < K - 1 ? load(p) : load_lanes(p, last, 0.0f);
    }
};

template <class T, Index K>
struct TileWriter {
    T* y;
    Index stride;
    Index last;

    void operator()(Index row, Index k, Vec v) const {
        T* p = y + row * stride + k * kWidth;
        if (k < K - 1 || last == kWidth)
            store(p, v);
        else
            store_n(p, v, last);
    }
};

// Per-lane sum of block sums with the rounding errors carried along (Neumaier's two-sum).
struct LaneSum {
    Vec s = set(0.0f), c = set(0.0f);

    void fold(Vec b) {
        const Vec t = add(s, b), back = sub(t, s);
        c = add(c, add(sub(s, sub(t, back)), sub(b, back)));
        s = t;
    }
    void rescale(Vec f) { s = mul(s, f), c = mul(c, f); }
    Vec value() const { return add(s, c); }
    Vec rest() const { return sub(c, sub(value(), s)); }
};

// Per lane what Stats is for a row.
template <Index K>
struct LaneStats {
    Vec max[K], shift[K], exponent[K], sum[K];
    Vec rest[K];  // what sum lacks to the sum of the folded blocks, for the logarithm
};

// reference_for, per lane.
template <Index K>
inline void set_references(LaneStats<K>& stats, bool logarithm) {
    const Vec zero = set(0.0f), low = set(-kShiftFrom);
    for (Index k = 0; k < K; ++k) {
        const Vec m = stats.max[k], bounded = max2(low, sub(zero, max2(low, sub(zero, m))));
        const Vec finite = where_equal(m, set(-kInf), zero, m);
        if (logarithm) {
            stats.shift[k] = finite;
            stats.exponent[k] = zero;
            continue;
        }
        stats.shift[k] = where_equal(bounded, m, zero, finite);
        stats.exponent[k] = where_equal(bounded, m, round_even(mul(bounded, set(kLog2e))), zero);
    }
}

template <Index K, class Read>
inline void lane_max(Read read, Index begin, Index end, Vec (&m)[K]) {
    for (Index i = begin; i < end; ++i)
        for (Index k = 0; k < K; ++k) m[k] = max2(read(i, k), m[k]);
}

template <Index K, class Term>
inline void lane_block(Index begin, Index end, LaneSum (&total)[K], Term term) {
    Vec s[K];
    for (Vec& v : s) v = set(0.0f);
    Index i = begin;
    for (; i + 4 <= end; i += 4) {
        for (Index k = 0; k < K; ++k) {
            const Vec low = add(term(i, k), term(i + 1, k)), high = add(term(i + 2, k), term(i + 3, k));
            s[k] = add(s[k], add(low, high));
        }
    }
    for (; i < end; ++i)
        for (Index k = 0; k < K; ++k) s[k] = add(s[k], term(i, k));
    for (Index k = 0; k < K; ++k) total[k].fold(s[k]);
}

// The log of a sum near 1 shows every rounding of that sum: with step 1 no plain addition is made at all.
template <Index K, class Term>
inline void lane_sums(Index n, Index step, LaneSum (&total)[K], Term term) {
    for (Index i = 0; i < n; i += step) lane_block(i, i + step < n ? i + step : n, total, term);
}

template <Index K, class Read>
LaneStats<K> lanes_online(Read read, Index n, bool logarithm) {
    LaneStats<K> out;
    LaneSum total[K];
    for (Vec& m : out.max) m = set(-kInf);
    set_references(out, logarithm);
    for (Index i = 0; i < n; i += kRowBlock) {
        const Index end = i + kRowBlock < n ? i + kRowBlock : n;
        const LaneStats<K> before = out;
        lane_max<K>(read, i, end, out.max);
        set_references(out, logarithm);
        for (Index k = 0; k < K; ++k) {
            const ExtExp e = bounded_ext_exp(sub(before.shift[k], out.shift[k]));
            const Vec shrink = scale2(e.p, add(e.n, sub(before.exponent[k], out.exponent[k])));
            // A lane without a finite entry so far has the sum 0 (or NaN), which no rescaling may disturb.
            total[k].rescale(where_equal(before.max[k], set(-kInf), set(1.0f), shrink));
        }
        lane_block<K>(i, end, total, [&](Index r, Index k) {
            return Window(out.shift[k], out.exponent[k])(read(r, k));
        });
    }
    for (Index k = 0; k < K; ++k) out.sum[k] = total[k].value(), out.rest[k] = total[k].rest();
    return out;
}

template <Index K, class Read>
LaneStats<K> lanes_pair(Read read, Index n, bool logarithm) {
    LaneStats<K> out;
    LaneSum total[K];
    for (Index k = 0; k < K; ++k) out.shift[k] = set(0.0f), out.exponent[k] = set(kLowestExponent);
    for (Index i = 0; i < n; i += kRowBlock) {
        const Index end = i + kRowBlock < n ? i + kRowBlock : n;
        PairLanes block[K];
        Index r = i;
        for (; r + 4 <= end; r += 4) {
            for (Index k = 0; k < K; ++k) {
                ExtExp e[4];
                for (Index j = 0; j < 4; ++j) e[j] = bounded_ext_exp(read(r + j, k));
                block[k].include(e);
            }
        }
        for (; r < end; ++r) {
            for (Index k = 0; k < K; ++k) {
                const ExtExp e[1] = {bounded_ext_exp(read(r, k))};
                block[k].include(e);
            }
        }
        for (Index k = 0; k < K; ++k) {
            const Vec top = max2(block[k].n, out.exponent[k]);
            total[k].rescale(scale2(set(1.0f), sub(out.exponent[k], top)));
            total[k].fold(scale2(block[k].m, sub(block[k].n, top)));
            out.exponent[k] = top;
        }
    }
    float low = kInf, high = -kInf;
    for (Index k = 0; k < K; ++k) {
        out.sum[k] = total[k].value();
        out.rest[k] = total[k].rest();
        const float top = reduce_max(out.exponent[k]), bottom = -reduce_max(sub(set(0.0f), out.exponent[k]));
        high = top > high ? top : high;
        low = bottom < low ? bottom : low;
    }
    return high < kPairLimit && low > -kPairLimit ? out : lanes_online<K>(read, n, logarithm);
}

// Both three-pass forms; `keep` stores the exponentials on the way (the reload form) or does nothing.
template <Index K, class Read, class Keep>
LaneStats<K> lanes_after_max(Read read, Index n, bool logarithm, Keep keep) {
    LaneStats<K> out;
    for (Vec& m : out.max) m = set(-kInf);
    lane_max<K>(read, 0, n, out.max);
    set_references(out, logarithm);
    LaneSum total[K];
    lane_sums<K>(n, logarithm ? 1 : kRowBlock, total, [&](Index i, Index k) {
        const Vec e = Window(out.shift[k], out.exponent[k])(read(i, k));
        keep(i, k, e);
        return e;
    });
    for (Index k = 0; k < K; ++k) out.sum[k] = total[k].value(), out.rest[k] = total[k].rest();
    return out;
}

// log of the sums: the log-sum-exp of every column as a double.
template <class T, Index K>
void lane_logs(const LaneStats<K>& stats, const TileReader<T, K>& read, const ColumnTile& tile, double* lse) {
    float shift[K * kWidth], exponent[K * kWidth], sum[K * kWidth], rest[K * kWidth];
    for (Index k = 0; k < K; ++k) {
        store(shift + k * kWidth, stats.shift[k]);
        store(exponent + k * kWidth, stats.exponent[k]);
        store(sum + k * kWidth, stats.sum[k]);
        store(rest + k * kWidth, stats.rest[k]);
    }
    for (Index c = 0; c < tile.columns; ++c) {
        lse[c] = __builtin_log(double(sum[c]) + double(rest[c])) + double(exponent[c]) * 0.693147180559945309417 + double(shift[c]);
        if (shift[c] != kInf || tile.op != Op::logsumexp) continue;
        lse[c] = kInf;  // as in torch.logsumexp; the sum is NaN here with or without a NaN entry
        for (Index i = 0; i < tile.n; ++i)
            if (any_nan(load_n(read.x + i * read.stride + c, 1, 0.0f))) lse[c] = __builtin_nan("");
    }
}

template <class T, Index K>
void write_logs(const LaneStats<K>& stats, const TileReader<T, K>& read, const TileWriter<T, K>& write,
                const ColumnTile& tile) {
    double lse[K * kWidth] = {};
    lane_logs<T, K>(stats, read, tile, lse);
    float high[K * kWidth], low[K * kWidth];
    for (Index c = 0; c < K * kWidth; ++c) {
        const bool empty = lse[c] == -double(kInf);
        const double value = empty ? (tile.empty_zero ? 0.0 : __builtin_nan("")) : lse[c];
        high[c] = tile.op == Op::logsumexp ? float(lse[c]) : float(value);
        low[c] = float(value - double(high[c]));
    }
    for (Index k = 0; k < K; ++k) {
        const Vec h = load(high + k * kWidth), l = load(low + k * kWidth);
        if (tile.op == Op::logsumexp) {
            write(0, k, h);
            continue;
        }
        for (Index i = 0; i < tile.n; ++i) write(i, k, sub(sub(read(i, k), h), l));
    }
}

template <class T, Index K>
void write_weights(const LaneStats<K>& stats, const TileReader<T, K>& read, const TileWriter<T, K>& write,
                   const ColumnTile& tile, bool stored) {
    Divisor divisor[K];
    const Vec empty = set(tile.empty_zero ? 0.0f : __builtin_nanf(""));
    for (Index k = 0; k < K; ++k) {
        const Vec inverse = div(set(1.0f), stats.sum[k]);
        divisor[k] = Divisor(stats.sum[k], where_equal(stats.sum[k], set(0.0f), empty, inverse));
    }
    const TileReader<T, K> kept{write.y, write.stride, write.last};
    for (Index i = 0; i < tile.n; ++i) {
        for (Index k = 0; k < K; ++k) {
            if (stored)
                write(i, k, divisor[k].divide(kept(i, k)));
            else
                write(i, k, Window(stats.shift[k], stats.exponent[k]).times(divisor[k].inverse, read(i, k)));
        }
    }
}

template <class T, Index K>
void run_column_tile(const ColumnTile& tile) {
    const Index last = tile.columns - (K - 1) * kWidth;
    const TileReader<T, K> read{as<T>(tile.x), tile.stride, last};
    const TileWriter<T, K> write{static_cast<T*>(tile.y), tile.stride, last};
    // Stored exponentials would be rounded twice in half precision; there the reload form recomputes them.
    const bool stored = tile.algorithm == Algorithm::reload && tile.op == Op::softmax && sizeof(T) == sizeof(float);
    const bool logarithm = tile.op != Op::softmax;
    LaneStats<K> stats;
    if (tile.algorithm == Algorithm::two_pass)
        stats = lanes_pair<K>(read, tile.n, logarithm);
    else if (tile.algorithm == Algorithm::online)
        stats = lanes_online<K>(read, tile.n, logarithm);
    else if (stored)
        stats = lanes_after_max<K>(read, tile.n, logarithm, write);
    else
        stats = lanes_after_max<K>(read, tile.n, logarithm, [](Index, Index, Vec) {});
    if (tile.op == Op::softmax)
        write_weights<T, K>(stats, read, write, tile, stored);
    else
        write_logs<T, K>(stats, read, write, tile);
}

template <class T>
void column_tile(const ColumnTile& tile) {
    static_assert(kTileVectors == 4, "the switch below lists them");
    switch ((tile.columns + kWidth - 1) / kWidth) {
        case 1: return run_column_tile<T, 1>(tile);
        case 2: return run_column_tile<T, 2>(tile);
        case 3: return run_column_tile<T, 3>(tile);
        default: return run_column_tile<T, 4>(tile);
    }
}

template <class T>
void column_grad(const ColumnGradTile& tile) {
    // One vector of columns at a time: three streams are in flight already.
    for (Index c = 0; c < tile.columns; c += kWidth) {
        const Index lanes = tile.columns - c < kWidth ? tile.columns - c : kWidth;
        const TileReader<T, 1> y{as<T>(tile.y) + c, tile.stride, lanes}, dy{as<T>(tile.dy) + c, tile.stride, lanes};
        const TileWriter<T, 1> dx{static_cast<T*>(tile.dx) + c, tile.stride, lanes};
        LaneSum total[1];
        lane_sums<1>(tile.n, kRowBlock, total,
                     [&](Index i, Index k) { return tile.log ? dy(i, k) : mul(y(i, k), dy(i, k)); });
        const Vec sum = total[0].value();
        for (Index i = 0; i < tile.n; ++i) {
            const Vec a = y(i, 0), b = dy(i, 0);
            dx(i, 0, tile.log ? fnma(probability(a), sum, b) : mul(a, sub(b, sum)));
        }
    }
}

}  // namespace
}  // namespace softgate
