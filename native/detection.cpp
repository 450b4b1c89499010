#include "detection.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

constexpr Index kWork = 32;  // elements of other kernels that a box is about as much work as

DetectionKernels kernels() {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_detection();
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_detection();
#endif
        default: return scalar_detection();
    }
}

// Rooms for groups of so many boxes; arrays are as long as whole vectors of any instruction set.
class Memory {
  public:
    explicit Memory(Index boxes) {
        const Index slots = (boxes + kBoxes) / kBoxes * kBoxes, blocks = slots / kBoxes + kBoxes;
        floats_.resize(7 * slots + 6 * blocks);
        integers_.resize(5 * slots);
        float* f = floats_.data();
        for (float** part : {&at.x1, &at.y1, &at.x2, &at.y2, &at.area, &at.score, &at.place}) *part = f, f += slots;
        for (float** part : {&at.low_x, &at.low_y, &at.high_x, &at.high_y, &at.best, &at.best_place})
            *part = f, f += blocks;
        std::int32_t* i = integers_.data();
        for (std::int32_t** part : {&at.source, &at.other, &at.key, &at.slot, &at.touched}) *part = i, i += slots;
    }
    NmsScratch at;

  private:
    std::vector<float> floats_;
    std::vector<std::int32_t> integers_;
};

}  // namespace

void soft_nms(const SoftNms& s) {
    const auto run = kernels().group;
    const Index boxes = s.offsets ? s.offsets[s.groups] : s.groups * s.size;
    Index largest = s.offsets ? 0 : s.size;
    for (Index g = 0; s.offsets && g < s.groups; ++g) largest = std::max<Index>(largest, s.offsets[g + 1] - s.offsets[g]);
    // groups differ in their work: whoever is free takes the next one
    std::atomic<Index> next{0};
    share_out(s.groups, boxes * kWork, s.threads, [&](Index, Index) {
        const Memory memory(largest);
        for (Index g = next++; g < s.groups; g = next++) run(s, g, memory.at);
    });
}

}  // namespace softgate
