// The loops of filters.hpp on the vectors of the instruction set that includes this.
#pragma once

namespace softgate {
namespace {

// Offset into a channel of what each tap reads at each place, -1 beyond the image or the last place.
inline void find_offsets(const SomeFilters& f, Index first, std::int32_t* offsets) {
    for (Index i = 0; i < kPanel; ++i) {
        const Index place = first + i;
        const bool real = place < f.places();
        const Index y0 = place / f.out_width * f.stride_height - f.pad_height;
        const Index x0 = place % f.out_width * f.stride_width - f.pad_width;
        for (Index dy = 0; dy < f.kernel_height; ++dy)
            for (Index dx = 0; dx < f.kernel_width; ++dx) {
                const Index y = y0 + dy * f.dilation_height, x = x0 + dx * f.dilation_width;
                const bool inside = real && y >= 0 && y < f.height && x >= 0 && x < f.width;
                offsets[(dy * f.kernel_width + dx) * kPanel + i] = inside ? std::int32_t(y * f.width + x) : -1;
            }
    }
}

inline bool in_sequence(const std::int32_t* offsets) {
    for (Index i = 0; i < kPanel; ++i)
        if (offsets[i] != offsets[0] + i || offsets[i] < 0) return false;
    return true;
}

void pack_places(const SomeFilters& f, Index first, std::int32_t* offsets, float* packed) {
    find_offsets(f, first, offsets);
    const Index taps = f.taps(), size = f.height * f.width;
    for (Index t = 0; t < taps; ++t) {
        const std::int32_t* at = offsets + t * kPanel;
        const bool whole = in_sequence(at);
        for (Index c = 0; c < f.channels; ++c) {
            const float* from = f.x + c * size;
            float* to = packed + (c * taps + t) * kPanel;
            if (whole) {
                store(to, load(from + at[0]));
                store(to + kWidth, load(from + at[0] + kWidth));
            } else {
                for (Index i = 0; i < kPanel; ++i) to[i] = at[i] < 0 ? 0.0f : from[at[i]];
            }
        }
    }
}

inline void put_places(float* to, const Vec& value, Index have) {
    if (have >= kWidth) {
        store(to, value);
    } else if (have > 0) {
        store_n(to, value, have);
    }
}

// Both: places fill more than one vector.
template <int Rows, bool Both>
inline void filter_strip(const SomeFilters& f, Index first, Index from, const float* packed) {
    Vec left[Rows], right[Rows];
    const float* rows[Rows];
    SOFTGATE_UNROLL
    for (int i = 0; i < Rows; ++i) {
        const std::int64_t filter = f.filters[from + i];
        rows[i] = f.weight + filter * f.row;
        left[i] = right[i] = set(f.bias[filter]);
    }
    const Index taps = f.taps();
    const float* b = packed;
    for (Index c = 0; c < f.channels; ++c) {
        const Index column = f.which[c] * taps;
        for (Index t = 0; t < taps; ++t, b += kPanel) {
            Vec b0 = load(b);
            hold(b0);
            Vec b1 = b0;
            if (Both) {
                b1 = load(b + kWidth);
                hold(b1);
            }
            SOFTGATE_UNROLL
            for (int i = 0; i < Rows; ++i) {
                const Vec w = set(rows[i][column + t]);
                left[i] = fma(w, b0, left[i]);
                if (Both) right[i] = fma(w, b1, right[i]);
            }
        }
    }
    const Index have = f.places() - first;
    SOFTGATE_UNROLL
    for (int i = 0; i < Rows; ++i) {
        float* to = f.out + (from + i) * f.places() + first;
        put_places(to, left[i], have);
        if (Both) put_places(to + kWidth, right[i], have - kWidth);
    }
}

// Between 1 and kGemmRows filters.
template <bool Both, int Rows = int(kGemmRows)>
inline void filter_strip_of(Index rows, const SomeFilters& f, Index first, Index from, const float* packed) {
    if constexpr (Rows > 1) {
        if (rows < Rows) return filter_strip_of<Both, Rows - 1>(rows, f, first, from, packed);
    }
    filter_strip<Rows, Both>(f, first, from, packed);
}

void run_filters(const SomeFilters& f, Index first, Index from, Index to, const float* packed) {
    const bool both = f.places() - first > kWidth;
    for (Index i = from; i < to; i += kGemmRows) {
        const Index rows = to - i < kGemmRows ? to - i : kGemmRows;
        if (both) {
            filter_strip_of<true>(rows, f, first, i, packed);
        } else {
            filter_strip_of<false>(rows, f, first, i, packed);
        }
    }
}

inline FilterKernels filters_of_this_isa() { return {kPanel, pack_places, run_filters}; }

}  // namespace
}  // namespace softgate
