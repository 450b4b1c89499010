// Shares attention out over threads: what a unit of work computes depends on the shapes alone.
#include "attention.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu.hpp"
#include "pool.hpp"

namespace softgate {
namespace {

constexpr double kWorthAThread = 1e6;  // multiplications

const AttentionKernels& kernels() {
    switch (current_isa()) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return *avx512_attention();
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return *avx2_attention();
#endif
        default: return *scalar_attention();
    }
}

Index up(Index n, Index step) { return (n + step - 1) / step * step; }

int useful_threads(const Attention& a, Index units) {
    const double work = double(a.batch) * double(a.heads) * double(a.queries) * double(a.keys) *
                        double(a.dim + a.value_dim);
    return int(std::max(1.0, std::min({double(a.threads), double(units), work / kWorthAThread})));
}

// Memory that starts at a cache line: packed panels read across two lines at a time cost half the speed.
class Buffer {
  public:
    explicit Buffer(Index floats) : memory_(new float[std::size_t(floats) + kLine]) {}
    float* data() const {
        const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory_.get());
        return memory_.get() + (kLine - address / sizeof(float) % kLine) % kLine;
    }

  private:
    static constexpr std::size_t kLine = 16;
    std::unique_ptr<float[]> memory_;
};

// task(unit, scratch) for every unit, in any order, on any thread.
template <class Task>
void share(int threads, Index units, Index scratch_floats, Task task) {
    std::atomic<Index> next{0};
    const auto work = [&](int) {
        const Buffer scratch(scratch_floats);
        for (Index unit; (unit = next.fetch_add(1)) < units;) task(unit, scratch.data());
    };
    if (threads <= 1) return work(0);
    parallel(threads, work);
}

}  // namespace

Index resident_rows(const Attention& a) {
    if (a.weights != Weights::clipped && a.weights != Weights::reweighted) return 0;
    constexpr Index step = 12;  // divisible by the rows of every instruction set's products
    const Index row_bytes = up(a.keys, kTileKeys) / 16 * 17 * Index(sizeof(float));
    const Index rows = machine().l2 * 7 / 8 / std::max<Index>(row_bytes, 1) / step * step;
    return std::min(rows, kQueryRows);
}

Index forward_rows(const Attention& a) {
    const Index resident = resident_rows(a);
    return resident > 0 ? resident : kQueryRows;
}

void attend(const Attention& a) {
    const AttentionKernels& k = kernels();
    const Index key_floats = up(a.keys, k.panel) * a.dim, value_floats = up(a.value_dim, k.panel) * a.keys;
    const Index heads = a.batch * a.groups, stride = key_floats + value_floats;  // whole lines, as panels are
    const Buffer packed(heads * stride);
    const Index rows = forward_rows(a), blocks = (a.queries + rows - 1) / rows, units = a.batch * a.heads * blocks;
    const int threads = useful_threads(a, units);
    share(threads, heads, 0, [&](Index head, float*) {
        float* to = packed.data() + head * stride;
        k.pack(a, head / a.groups, head % a.groups, to, to + key_floats);
    });
    share(threads, units, k.forward_scratch(a), [&](Index unit, float* scratch) {
        const Index head = unit / blocks, block = blocks - 1 - unit % blocks;  // causal: the longest first
        const Index b = head / a.heads, h = head % a.heads;
        const float* from = packed.data() + (b * a.groups + a.group_of(h)) * stride;
        k.forward(a, b, h, block * rows, from, from + key_floats, scratch);
    });
}

void attend_backward(const Attention& a) {
    const AttentionKernels& k = kernels();
    const Index size = back_chunk(a.keys), chunks = (a.keys + size - 1) / size, heads = a.batch * a.groups;
    const int threads = useful_threads(a, heads * chunks);
    const Index queries = a.batch * a.heads * a.queries * a.dim, biases = a.batch * a.heads;
    // The chunks of a head add to the same gradient of its queries: one after the other, or each on its own and then
    // summed in the same order.
    if (chunks == 1 || heads >= threads) {
        share(threads, heads, k.backward_scratch(a), [&](Index head, float* scratch) {
            for (Index c = 0; c < chunks; ++c)
                k.backward(a, head / a.groups, head % a.groups, c * size, a.grad_query, a.grad_bias, scratch);
        });
        return;
    }
    std::vector<float> parts(std::size_t(chunks * queries));
    std::vector<double> bias_parts(std::size_t(chunks * biases));
    share(threads, heads * chunks, k.backward_scratch(a), [&](Index unit, float* scratch) {
        const Index head = unit / chunks, c = chunks - 1 - unit % chunks;
        k.backward(a, head / a.groups, head % a.groups, c * size, parts.data() + c * queries,
                   a.grad_bias == nullptr ? nullptr : bias_parts.data() + c * biases, scratch);
    });
    for (Index c = 0; c < chunks; ++c) {
        for (Index i = 0; i < queries; ++i) a.grad_query[i] += parts[std::size_t(c * queries + i)];
        if (a.grad_bias == nullptr) continue;
        for (Index i = 0; i < biases; ++i) a.grad_bias[i] += bias_parts[std::size_t(c * biases + i)];
    }
}

void count_keys(const Attention& a) {
    const AttentionKernels& k = kernels();
    const Index blocks = (a.queries + kQueryRows - 1) / kQueryRows, units = a.batch * a.heads * blocks;
    share(useful_threads(a, units), units, kQueryRows * (kTileKeys + 16), [&](Index unit, float* scratch) {
        const Index head = unit / blocks;
        k.count(a, head / a.heads, head % a.heads, unit % blocks * kQueryRows, scratch);
    });
}

}  // namespace softgate
