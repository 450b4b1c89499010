#include "detection_module.hpp"

#include "address.hpp"
#include "detection.hpp"

namespace nb = nanobind;

namespace softgate {

void bind_detection(nb::module_& m) {
    m.def(
        "soft_nms",
        [](std::uintptr_t boxes, std::uintptr_t scores, std::uintptr_t order, std::uintptr_t offsets, Index groups,
           Index size, Index shared, int decay, int first, float sigma, float overlap, float threshold, float offset,
           bool inclusive, bool keep_equal, Index most, std::uintptr_t keep, std::uintptr_t final,
           std::uintptr_t count, int threads) {
            SoftNms s;
            s.boxes = pointer<const float>(boxes), s.scores = pointer<const float>(scores);
            s.order = pointer<const std::int64_t>(order), s.offsets = pointer<const std::int64_t>(offsets);
            s.groups = groups, s.size = size, s.shared = shared;
            s.decay = Decay(decay), s.first = BelowThreshold(first);
            s.sigma = sigma, s.overlap = overlap, s.threshold = threshold, s.offset = offset;
            s.inclusive = inclusive, s.keep_equal = keep_equal, s.most = most;
            s.keep = pointer<std::int64_t>(keep), s.final = pointer<float>(final);
            s.count = pointer<std::int64_t>(count), s.threads = threads;
            nb::gil_scoped_release release;
            soft_nms(s);
        },
        nb::arg("boxes"), nb::arg("scores"), nb::arg("order"), nb::arg("offsets"), nb::arg("groups"), nb::arg("size"),
        nb::arg("shared"), nb::arg("decay"), nb::arg("first"), nb::arg("sigma"), nb::arg("overlap"),
        nb::arg("threshold"), nb::arg("offset"), nb::arg("inclusive"), nb::arg("keep_equal"), nb::arg("most"),
        nb::arg("keep"), nb::arg("final"), nb::arg("count"), nb::arg("threads"));
}

}  // namespace softgate
