// The loop of detection.hpp on the vectors of the instruction set that includes this.
//
// Boxes lie in blocks of neighbours. A pick meets only the blocks whose bounds it overlaps, and each block remembers
// its best box, so that a step costs two passes over blocks and one over the boxes near the pick. Memory is O(N).
#pragma once

namespace softgate {
namespace {

constexpr Index kUnsorted = 48;  // fewer boxes than this are not worth sorting by place
constexpr float kGone = -1.0f;   // score of a slot without a living box
static_assert(kBoxes % kWidth == 0, "blocks are whole vectors");

struct Box {
    float x1, y1, x2, y2;
};

inline float side(float low, float high, float offset) {
    const float length = high - low + offset;
    return length > 0.0f ? length : 0.0f;
}

// Spreads the lowest eight bits of a to the even places.
inline std::uint32_t spread(std::uint32_t a) {
    a = (a | a << 4) & 0x0f0fu;
    a = (a | a << 2) & 0x3333u;
    return (a | a << 1) & 0x5555u;
}

inline std::uint32_t cell(float at, float low, float scale) {
    const float t = (at - low) * scale;
    return !(t > 0.0f) ? 0u : t < 255.0f ? std::uint32_t(t) : 255u;
}

class Suppression {
  public:
    Suppression(const SoftNms& rule, Index group, const NmsScratch& scratch)
        : r_(rule), w_(scratch), base_(rule.offsets ? rule.offsets[group] : group * rule.size),
          size_(rule.offsets ? rule.offsets[group + 1] - base_ : rule.size),
          boxes_(rule.offsets ? rule.boxes : rule.boxes + 4 * (group / rule.shared) * rule.size) {}

    Index run() {
        collect();
        if (n_ > kUnsorted) sort_by_place();
        lay_out();
        switch (r_.decay) {
            case Decay::hard: return pick_all<Decay::hard>();
            case Decay::linear: return pick_all<Decay::linear>();
            default: return pick_all<Decay::gaussian>();
        }
    }

  private:
    Index row(Index i) const { return r_.order ? Index(r_.order[base_ + i]) : i; }
    float raw_score(Index i) const { return r_.offsets ? r_.scores[row(i)] : r_.scores[base_ + i]; }
    Box box(Index i) const {
        const float* b = boxes_ + 4 * row(i);
        return {b[0], b[1], b[2], b[3]};
    }
    bool passes(float score) const { return r_.keep_equal ? score >= r_.threshold : score > r_.threshold; }

    void collect() {
        n_ = 0;
        Index best = -1;
        for (Index i = 0; i < size_; ++i) {
            const float s = raw_score(i);
            if (!(s >= 0.0f)) continue;
            const Box b = box(i);
            if (b.x1 != b.x1 || b.y1 != b.y1 || b.x2 != b.x2 || b.y2 != b.y2) continue;
            if (r_.first == BelowThreshold::dropped && !passes(s)) continue;
            if (best < 0 || s > raw_score(best)) best = i;
            source_[n_++] = std::int32_t(i);
        }
        if (r_.first != BelowThreshold::best_kept) return;
        Index kept = 0;
        for (Index k = 0; k < n_; ++k)
            if (source_[k] == best || passes(raw_score(source_[k]))) source_[kept++] = source_[k];
        n_ = kept;
    }

    // Along a curve that fills the plane: two stable passes over the bytes of the keys.
    void sort_by_place() {
        float low_x = box(source_[0]).x1, low_y = box(source_[0]).y1, high_x = low_x, high_y = low_y;
        for (Index k = 0; k < n_; ++k) {
            const Box b = box(source_[k]);
            low_x = b.x1 < low_x ? b.x1 : low_x, high_x = b.x1 > high_x ? b.x1 : high_x;
            low_y = b.y1 < low_y ? b.y1 : low_y, high_y = b.y1 > high_y ? b.y1 : high_y;
        }
        const float scale_x = 255.0f / (high_x - low_x), scale_y = 255.0f / (high_y - low_y);
        for (Index k = 0; k < n_; ++k) {
            const Box b = box(source_[k]);
            w_.key[source_[k]] =
                std::int32_t(spread(cell(b.x1, low_x, scale_x)) | spread(cell(b.y1, low_y, scale_y)) << 1);
        }
        for (int shift = 0; shift < 16; shift += 8) {
            Index start[257] = {};
            for (Index k = 0; k < n_; ++k) ++start[(w_.key[source_[k]] >> shift & 255) + 1];
            for (int k = 0; k < 256; ++k) start[k + 1] += start[k];
            for (Index k = 0; k < n_; ++k) other_[start[w_.key[source_[k]] >> shift & 255]++] = source_[k];
            std::int32_t* const sorted = other_;
            other_ = source_, source_ = sorted;
        }
    }

    void lay_out() {
        blocks_ = (n_ + kBoxes - 1) / kBoxes;
        padded_ = (blocks_ + kWidth - 1) / kWidth * kWidth;
        for (Index b = blocks_; b < padded_; ++b) w_.best[b] = kGone, w_.best_place[b] = kMinusInfinity;
        for (Index b = 0; b < blocks_; ++b) {
            for (Index k = b * kBoxes; k < (b + 1) * kBoxes; ++k) {
                const std::int32_t i = source_[k < n_ ? k : n_ - 1];  // what is missing repeats the last box, gone
                const Box box_i = box(i);
                w_.x1[k] = box_i.x1, w_.y1[k] = box_i.y1, w_.x2[k] = box_i.x2, w_.y2[k] = box_i.y2;
                w_.area[k] = side(box_i.x1, box_i.x2, r_.offset) * side(box_i.y1, box_i.y2, r_.offset);
                w_.place[k] = -float(i);
                w_.score[k] = k < n_ ? raw_score(i) : kGone;
                if (k < n_) w_.slot[i] = std::int32_t(k);
            }
            bound(b);
            remember_best(b);
        }
    }

    void bound(Index b) {
        Index k = b * kBoxes;
        Box c{w_.x1[k], w_.y1[k], w_.x2[k], w_.y2[k]};
        for (Index last = k + kBoxes; k < last; ++k) {
            c.x1 = w_.x1[k] < c.x1 ? w_.x1[k] : c.x1, c.y1 = w_.y1[k] < c.y1 ? w_.y1[k] : c.y1;
            c.x2 = w_.x2[k] > c.x2 ? w_.x2[k] : c.x2, c.y2 = w_.y2[k] > c.y2 ? w_.y2[k] : c.y2;
        }
        w_.low_x[b] = c.x1, w_.low_y[b] = c.y1, w_.high_x[b] = c.x2, w_.high_y[b] = c.y2;
    }

    // The first of equal scores has the largest negative place.
    static float first_of(const float* score, const float* place, Index n, float top) {
        const Vec t = set(top), none = set(kMinusInfinity);
        Vec first = none;
        for (Index k = 0; k < n; k += kWidth) first = max2(where_equal(load(score + k), t, load(place + k), none), first);
        return reduce_max(first);
    }
    static float highest(const float* score, Index n) {
        Vec top = set(kGone);
        for (Index k = 0; k < n; k += kWidth) top = max2(load(score + k), top);
        return reduce_max(top);
    }
    void remember_best(Index b) {
        const float* score = w_.score + b * kBoxes;
        w_.best[b] = highest(score, kBoxes);
        w_.best_place[b] = first_of(score, w_.place + b * kBoxes, kBoxes, w_.best[b]);
    }

    template <Decay decay>
    Index pick_all() {
        Index picks = 0;
        for (; picks < r_.most; ++picks) {
            const float top = highest(w_.best, padded_);
            if (top < 0.0f) break;
            const Index i = Index(-first_of(w_.best, w_.best_place, padded_, top));
            const Index slot = w_.slot[i];
            r_.keep[base_ + picks] = row(i);
            r_.final[base_ + picks] = top;
            w_.score[slot] = kGone;
            const Box p{w_.x1[slot], w_.y1[slot], w_.x2[slot], w_.y2[slot]};
            const Index count = find_touched(p), own = slot / kBoxes;
            bool updated = false;
            for (Index t = 0; t < count; ++t) {
                weaken<decay>(w_.touched[t], p, w_.area[slot]);
                updated |= w_.touched[t] == own;
            }
            if (!updated) remember_best(own);  // a pick without area does not even touch itself
        }
        return picks;
    }

    Index find_touched(const Box& p) {
        Index count = 0;
        for (Index b = 0; b < blocks_; ++b) {
            const float w = (p.x2 < w_.high_x[b] ? p.x2 : w_.high_x[b]) - (p.x1 > w_.low_x[b] ? p.x1 : w_.low_x[b]);
            const float h = (p.y2 < w_.high_y[b] ? p.y2 : w_.high_y[b]) - (p.y1 > w_.low_y[b] ? p.y1 : w_.low_y[b]);
            w_.touched[count] = std::int32_t(b);
            count += int(w + r_.offset > 0.0f) & int(h + r_.offset > 0.0f) & int(w_.best[b] >= 0.0f);
        }
        return count;
    }

    template <Decay decay>
    void weaken(Index b, const Box& p, float area) {
        const Vec zero = set(0.0f), one = set(1.0f), offset = set(r_.offset), gone = set(kGone);
        const Vec threshold = set(r_.threshold), limit = set(r_.overlap);
        for (Index k = b * kBoxes; k < (b + 1) * kBoxes; k += kWidth) {
            const Vec x = sub(min2(load(w_.x2 + k), set(p.x2)), max2(load(w_.x1 + k), set(p.x1)));
            const Vec y = sub(min2(load(w_.y2 + k), set(p.y2)), max2(load(w_.y1 + k), set(p.y1)));
            const Vec width = max2(rounded(add(rounded(x), offset)), zero);
            const Vec height = max2(rounded(add(rounded(y), offset)), zero);
            const Vec common = rounded(mul(width, height)), old = load(w_.score + k);
            if (!any_less(gone, where_less(zero, common, old, gone))) continue;  // nobody alive here overlaps the pick
            const Vec both = rounded(add(set(area), load(w_.area + k)));
            const Vec all = rounded(sub(both, common));
            const Vec o = where_less(zero, all, rounded(div(common, all)), zero);
            Vec f = one;
            if (decay == Decay::gaussian) {
                f = exp_of(rounded(div(sub(zero, rounded(mul(o, o))), set(r_.sigma))));
            } else {
                const Vec lower = decay == Decay::hard ? zero : rounded(sub(one, o));
                f = r_.inclusive ? where_less(o, limit, one, lower) : where_less(limit, o, lower, one);
            }
            Vec s = where_equal(f, zero, zero, rounded(mul(old, rounded(f))));
            s = r_.keep_equal ? where_less(s, threshold, gone, s) : where_less(threshold, s, s, gone);
            s = where_less(zero, common, s, old);
            store(w_.score + k, where_less(old, zero, old, s));
        }
        remember_best(b);
    }

    const SoftNms& r_;
    const NmsScratch& w_;
    const Index base_, size_;
    const float* const boxes_;
    std::int32_t *source_ = w_.source, *other_ = w_.other;  // places in the group of those that take part
    Index n_ = 0, blocks_ = 0, padded_ = 0;
};

inline void one_group(const SoftNms& rule, Index group, const NmsScratch& scratch) {
    const Index picks = Suppression(rule, group, scratch).run();
    rule.count[group] = picks;
    if (rule.offsets) return;
    for (Index k = group * rule.size + picks; k < (group + 1) * rule.size; ++k) rule.keep[k] = -1, rule.final[k] = 0.0f;
}

inline DetectionKernels detection_of_this_isa() { return {one_group}; }

}  // namespace
}  // namespace softgate
