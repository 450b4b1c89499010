// Greedy suppression of boxes that lowers scores (Soft-NMS), many groups of boxes at once.
#pragma once

#include "kernels.hpp"

namespace softgate {

enum class Decay : int { hard, linear, gaussian };
// Boxes below the threshold before the first pick: all go, all but the best go, or only boxes that overlap a pick do.
enum class BelowThreshold : int { dropped, best_kept, untested };

struct SoftNms {
    const float *boxes = nullptr, *scores = nullptr;  // corners and scores; a score that is not >= 0 means no box
    // Rows of group g: order[offsets[g]] … order[offsets[g + 1] - 1]. Without offsets groups have `size` boxes each,
    // scores in rows of their own, and `shared` groups in sequence the same boxes.
    const std::int64_t *order = nullptr, *offsets = nullptr;
    Index groups = 0, size = 0, shared = 1;
    Decay decay = Decay::gaussian;
    BelowThreshold first = BelowThreshold::dropped;
    float sigma = 0.5f, overlap = 0.3f, threshold = 1e-3f, offset = 0.0f;
    bool inclusive = false;   // an overlap equal to the threshold counts as above it
    bool keep_equal = true;   // a score equal to the threshold stays
    Index most = 0;           // picks of a group
    // Of group g from place offsets[g] (or g * size) on: rows or places in the group, final scores; how many there are.
    // Groups of one size are filled up with -1 and 0.
    std::int64_t *keep = nullptr, *count = nullptr;
    float* final = nullptr;
    int threads = 1;
};

constexpr Index kBoxes = 16;  // boxes that lie together in memory and, as far as may be, in space

// Memory of one thread: structure of arrays. Slots hold boxes in blocks; what is of a block are its bounds and its best.
// Plain pointers: the code of a container, compiled for one instruction set, might be linked into that for another.
struct NmsScratch {
    float *x1, *y1, *x2, *y2, *area, *score, *place;            // one entry per slot
    float *low_x, *low_y, *high_x, *high_y, *best, *best_place;  // one entry per block
    std::int32_t *source, *other, *key, *slot, *touched;         // one entry per box of the group, and one more
};

struct DetectionKernels {
    void (*group)(const SoftNms&, Index group, const NmsScratch&);
};

DetectionKernels scalar_detection();
DetectionKernels avx2_detection();
DetectionKernels avx512_detection();

void soft_nms(const SoftNms&);

}  // namespace softgate
