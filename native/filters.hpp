// A convolution of one image that computes only some of its filters, from only some channels, on the weights as they
// lie: nothing is gathered or laid out anew but the image.
#pragma once

#include "kernels.hpp"

namespace softgate {

struct SomeFilters {
    const float* x = nullptr;                // (channels, height, width)
    const std::int64_t* which = nullptr;     // which channels of the weights these are
    const float *weight = nullptr, *bias = nullptr;  // (all filters, `row` floats) and one number each
    const std::int64_t* filters = nullptr;   // the filters to compute
    Index channels = 0, count = 0, row = 0;
    Index height = 0, width = 0, out_height = 0, out_width = 0;
    Index kernel_height = 1, kernel_width = 1;
    Index stride_height = 1, stride_width = 1, pad_height = 0, pad_width = 0, dilation_height = 1, dilation_width = 1;
    float* out = nullptr;  // (count, out_height, out_width)
    int threads = 1;

    Index taps() const { return kernel_height * kernel_width; }
    Index places() const { return out_height * out_width; }
};

struct FilterKernels {
    Index panel;  // places that are computed together
    // Lays out the inputs of `panel` places from `first` on: (channels, taps, panel), with 0 beyond the image.
    // `offsets` has room for (taps, panel).
    void (*pack)(const SomeFilters&, Index first, std::int32_t* offsets, float* packed);
    // Filters[from … to - 1] at these places.
    void (*run)(const SomeFilters&, Index first, Index from, Index to, const float* packed);
};

FilterKernels scalar_filters();
FilterKernels avx2_filters();
FilterKernels avx512_filters();

void some_filters(const SomeFilters&);

}  // namespace softgate
