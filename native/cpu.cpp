#include "cpu.hpp"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#if defined(__x86_64__) || defined(_M_X64)
#define SOFTGATE_X86 1
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace softgate {
namespace {

#if defined(SOFTGATE_X86)
struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned sub) {
#if defined(_MSC_VER)
    int r[4];
    __cpuidex(r, int(leaf), int(sub));
    return {unsigned(r[0]), unsigned(r[1]), unsigned(r[2]), unsigned(r[3])};
#else
    Registers r{0, 0, 0, 0};
    __cpuid_count(leaf, sub, r.a, r.b, r.c, r.d);
    return r;
#endif
}

// Register state the operating system saves on a context switch; only callable when OSXSAVE is set.
std::uint64_t saved_state() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t(high) << 32) | low;
#endif
}

bool has(unsigned word, int bit) { return (word >> bit) & 1u; }

Isa detect() {
    if (cpuid(0, 0).a < 7) return Isa::scalar;
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0);
    const bool osxsave = has(one.c, 27), fma = has(one.c, 12), f16c = has(one.c, 29);
    if (!osxsave || !fma || !f16c) return Isa::scalar;
    const std::uint64_t state = saved_state();
    if ((state & 0x6) != 0x6 || !has(seven.b, 5)) return Isa::scalar;  // ymm registers, AVX2
    const bool zmm = (state & 0xe6) == 0xe6;
    const bool avx512 = has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31);  // F DQ BW VL
    return zmm && avx512 ? Isa::avx512 : Isa::avx2;
}
#else
Isa detect() { return Isa::scalar; }
#endif

// The kernel's own description; sysconf multiplies the last level by the number of cores on some virtual machines.
Index cache_bytes(int level, Index otherwise) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(level) + "/size");
    Index size = 0;
    char unit = 'K';
    if (!(file >> size) || size <= 0) return otherwise;
    file >> unit;
    return size << (unit == 'M' ? 20 : 10);
}

int usable_threads() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, int(std::thread::hardware_concurrency()));
}

Machine describe() {
    Machine m{detect(), cache_bytes(2, Index(1) << 20), 0, usable_threads()};
    m.llc = std::max(m.l2, cache_bytes(3, Index(8) << 20));
    while (kernels_for(m.isa, Dtype::f32) == nullptr) m.isa = Isa(int(m.isa) - 1);
    return m;
}

std::atomic<int> chosen{-1};

}  // namespace

const Machine& machine() {
    static const Machine found = describe();
    return found;
}

const KernelTable* kernels_for(Isa isa, Dtype dtype) {
    switch (isa) {
#if defined(SOFTGATE_HAVE_AVX512)
        case Isa::avx512: return avx512_kernels(dtype);
#endif
#if defined(SOFTGATE_HAVE_AVX2)
        case Isa::avx2: return avx2_kernels(dtype);
#endif
        case Isa::scalar: return scalar_kernels(dtype);
        default: return nullptr;
    }
}

Isa current_isa() {
    const int isa = chosen.load(std::memory_order_relaxed);
    return isa < 0 ? machine().isa : Isa(isa);
}

bool set_isa(Isa isa) {
    if (int(isa) > int(machine().isa) || kernels_for(isa, Dtype::f32) == nullptr) return false;
    chosen.store(int(isa), std::memory_order_relaxed);
    return true;
}

const char* isa_name(Isa isa) {
    return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "scalar";
}

}  // namespace softgate
