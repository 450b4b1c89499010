// How scores become weights, forward. A map works in place on one tile after the other and keeps what it needs per row.
//   kSweeps 2: before any weight is formed, scan() has seen all tiles once; prepare() is the part of it that changes
//   the tile, to be repeated if the tile had to be computed again.
//   weigh() turns a tile into weights; finish() gives the factor of a row's sum.
#pragma once

namespace softgate {
namespace {

// Running maximum and sum of exponentials of each row.
struct OnlineSum {
    float max[kQueryRows], sum[kQueryRows];

    explicit OnlineSum(Index rows) {
        for (Index r = 0; r < rows; ++r) max[r] = kMinusInfinity, sum[r] = 0.0f;
    }
    // Takes n more scores of row r, replacing them by their exponentials if wanted; returns the factor of what came
    // before.
    float add_row(Index r, float* x, Index n, bool keep) {
        const float before = max[r], top = row_max(x, n);
        if (top > before) max[r] = top;
        const Vec shift = set(this->shift(r));
        Vec total = set(0.0f);
        if (keep) {
            map_row(x, n, kMinusInfinity, [&](Vec v) {
                const Vec e = exp_of(sub(v, shift));
                total = add(total, e);
                return e;
            });
        } else {
            visit_row(x, n, kMinusInfinity, [&](Vec v) { total = add(total, exp_of(sub(v, shift))); });
        }
        const float factor = max[r] == before || before == kMinusInfinity ? 1.0f : exp_of(before - max[r]);
        sum[r] = sum[r] * factor + reduce_add(total);
        return factor;
    }
    // A row is exp(s - shift) * inverse. Not exp(s - log-sum-exp): next to a large maximum that sum would be rounded off.
    float shift(Index r) const { return max[r] == kMinusInfinity ? 0.0f : max[r]; }
    // Without any key 0; with nothing but scores of -inf NaN, as in 0 / 0.
    float inverse(const Block& block, Index r) const {
        if (sum[r] != 0.0f) return 1.0f / sum[r];
        return sees_a_key(block, r) ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    }
    void store(const Block& block, Index r, float inverse_sum) const {
        const Index at = block.row_index() + r;
        if (block.a.row[0] != nullptr) block.a.row[0][at] = shift(r);
        if (block.a.row[1] != nullptr) block.a.row[1][at] = inverse_sum;
    }
};

struct Softmax {
    static constexpr int kSweeps = 1;
    static constexpr bool kSecond = false;
    const Block& block;
    OnlineSum online;

    explicit Softmax(const Block& rows) : block(rows), online(rows.rows) {}
    void weigh(const Tile& tile, float*, float* sums, Index columns) {
        for (Index r = 0; r < tile.rows; ++r) {
            if (tile.length(r) == 0) continue;
            const float factor = online.add_row(r, tile.row(r) + tile.begin[r], tile.length(r), true);
            if (factor != 1.0f) scale_row(sums + r * columns, columns, factor);
        }
    }
    float finish(Index r) const {
        const float factor = online.inverse(block, r);
        online.store(block, r, factor);
        return factor;
    }
};

struct Sigmoid {
    static constexpr int kSweeps = 1;
    static constexpr bool kSecond = false;
    const Vec bias;

    explicit Sigmoid(const Block& block)
        : bias(set(block.a.head_bias == nullptr ? 0.0f : block.a.head_bias[block.b * block.a.heads + block.h])) {}
    void weigh(const Tile& tile, float*, float*, Index) {
        for (Index r = 0; r < tile.rows; ++r)
            map_row(tile.row(r) + tile.begin[r], tile.length(r), kMinusInfinity,
                    [&](Vec s) { return sigmoid_of(add(s, bias)); });
    }
    float finish(Index) const { return 1.0f; }
};

// Weights clip((zeta - gamma) P + gamma, 0, 1); those of second are P where nothing was clipped.
struct Clipped {
    static constexpr int kSweeps = 2;
    static constexpr bool kSecond = true;
    const Block& block;
    OnlineSum online;
    float inverse[kQueryRows];

    explicit Clipped(const Block& rows) : block(rows), online(rows.rows) {}
    void prepare(const Tile&) {}
    void scan(const Tile& tile) {
        for (Index r = 0; r < tile.rows; ++r)
            if (tile.length(r) > 0) online.add_row(r, tile.row(r) + tile.begin[r], tile.length(r), false);
    }
    void scanned() {
        for (Index r = 0; r < block.rows; ++r) inverse[r] = online.inverse(block, r);
    }
    void weigh(const Tile& tile, float* second, float*, Index) {
        const Vec gamma = set(block.a.gamma), width = set(block.a.zeta - block.a.gamma);
        const Vec zero = set(0.0f), one = set(1.0f);
        for (Index r = 0; r < tile.rows; ++r) {
            const Vec shift = set(online.shift(r)), part = set(inverse[r]), slope = mul(part, width);
            float* s = tile.row(r) + tile.begin[r];
            if (second == nullptr) {
                map_row(s, tile.length(r), kMinusInfinity, [&](Vec v) {
                    return min2(one, max2(zero, fma(exp_of(sub(v, shift)), slope, gamma)));
                });
                continue;
            }
            map_rows(s, second + r * tile.ld + tile.begin[r], tile.length(r), kMinusInfinity, [&](Vec& v, Vec& free) {
                const Vec e = exp_of(sub(v, shift)), x = fma(e, slope, gamma);
                free = where_less(x, zero, zero, where_less(one, x, zero, mul(e, part)));
                v = min2(one, max2(zero, x));
            });
        }
    }
    float finish(Index r) const {
        online.store(block, r, inverse[r]);
        return 1.0f;
    }
    float finish_second(Index) const { return 1.0f; }
};

struct Softplus {
    static constexpr int kSweeps = 1;
    static constexpr bool kSecond = false;
    const Block& block;
    float sum[kQueryRows] = {};

    explicit Softplus(const Block& rows) : block(rows) {}
    void weigh(const Tile& tile, float*, float*, Index) {
        for (Index r = 0; r < tile.rows; ++r) {
            Vec total = set(0.0f);
            map_row(tile.row(r) + tile.begin[r], tile.length(r), kMinusInfinity, [&](Vec s) {
                const Vec f = softplus_of(s);
                total = add(total, f);
                return f;
            });
            sum[r] += reduce_add(total);
        }
    }
    float finish(Index r) const {
        if (block.a.row[0] != nullptr) block.a.row[0][block.row_index() + r] = sum[r];
        return sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
    }
};

// f = softplus(s), l = sum f, t = relu(N f / l - o) / top, w = t^p / r with r = sum t^p; top is the power of two above
// the largest numerator.
// Keeps l, top (0 where all keys tie up to rounding: then w = f / l), r and y = sum t^(p-1) / (r top); second is sum t^(p-1) v / (r top).
constexpr float kTie = 16 * 0x1p-23f;

struct Reweighted {
    static constexpr int kSweeps = 2;
    static constexpr bool kSecond = true;
    const Block& block;
    const float *count, *offset;
    float sum[kQueryRows] = {}, max[kQueryRows] = {}, total[kQueryRows] = {}, lower[kQueryRows] = {};
    float top[kQueryRows], ratio[kQueryRows];

    explicit Reweighted(const Block& rows)
        : block(rows), count(rows.a.count + rows.row_index()), offset(rows.a.offset + rows.row_index()) {}
    void prepare(const Tile& tile) {
        for (Index r = 0; r < tile.rows; ++r)
            map_row(tile.row(r) + tile.begin[r], tile.length(r), kMinusInfinity, [](Vec s) { return softplus_of(s); });
    }
    void scan(const Tile& tile) {
        for (Index r = 0; r < tile.rows; ++r) {
            Vec part = set(0.0f), high = set(max[r]);
            map_row(tile.row(r) + tile.begin[r], tile.length(r), kMinusInfinity, [&](Vec s) {
                const Vec f = softplus_of(s);
                part = add(part, f);
                high = max2(f, high);
                return f;
            });
            sum[r] += reduce_add(part);
            max[r] = reduce_max(high);
        }
    }
    void scanned() {
        for (Index r = 0; r < block.rows; ++r) {
            ratio[r] = sum[r] == 0.0f ? 0.0f : count[r] / sum[r];
            top[r] = reduce_max(excess(set(max[r]), set(ratio[r]), set(offset[r])));
            if (top[r] <= kTie) top[r] = 0.0f;
            if (top[r] > 0.0f && top[r] <= std::numeric_limits<float>::max()) {
                int exponent;  // any divisor of about this size serves; by a power of two no digit is lost
                std::frexp(top[r], &exponent);
                top[r] = std::ldexp(1.0f, exponent);
            }
            if (top[r] == 0.0f) total[r] = sum[r];
        }
    }
    void weigh(const Tile& tile, float* second, float*, Index) {
        for (Index r = 0; r < tile.rows; ++r) {
            if (top[r] == 0.0f) {
                if (second != nullptr) clear(second + r * tile.ld + tile.begin[r], tile.length(r));
                continue;
            }
            switch (block.a.power) {  // constants spare the loop over the bits
                case 15: weigh_row(tile, second, r, [](Vec t) { return power_of(t, 14); }); break;
                case 3: weigh_row(tile, second, r, [](Vec t) { return power_of(t, 2); }); break;
                default: weigh_row(tile, second, r, [this](Vec t) { return power_of(t, block.a.power - 1); });
            }
        }
    }
    static Vec excess(Vec f, Vec ratio, Vec level) { return max2(set(0.0f), fma(f, ratio, sub(set(0.0f), level))); }
    template <class Power>
    void weigh_row(const Tile& tile, float* second, Index r, Power power) {
        const Vec slope = set(ratio[r]), level = set(offset[r]), inverse = set(1.0f / top[r]);
        Vec part = set(0.0f), below = set(0.0f);
        float* s = tile.row(r) + tile.begin[r];
        if (second == nullptr) {
            map_row(s, tile.length(r), 0.0f, [&](Vec f) {
                const Vec t = mul(excess(f, slope, level), inverse), w = mul(power(t), t);
                part = add(part, w);
                return w;
            });
        } else {
            map_rows(s, second + r * tile.ld + tile.begin[r], tile.length(r), 0.0f, [&](Vec& f, Vec& lower_power) {
                const Vec t = mul(excess(f, slope, level), inverse);
                lower_power = where_less(set(0.0f), t, power(t), t);  // t^0 counts only where t > 0
                f = mul(lower_power, t);
                part = add(part, f);
                below = add(below, lower_power);
            });
            lower[r] += reduce_add(below);
        }
        total[r] += reduce_add(part);
    }
    float finish(Index r) const {
        const Attention& a = block.a;
        const Index at = block.row_index() + r;
        const float* values[4] = {sum, top, total, nullptr};
        for (int k = 0; k < 3; ++k)
            if (a.row[k] != nullptr) a.row[k][at] = values[k][r];
        if (a.row[3] != nullptr) a.row[3][at] = lower[r] * finish_second(r);
        return total[r] == 0.0f ? 0.0f : 1.0f / total[r];
    }
    float finish_second(Index r) const { return top[r] == 0.0f ? 0.0f : 1.0f / (total[r] * top[r]); }
};

}  // namespace
}  // namespace softgate
