// What this machine is: the widest usable instruction set and the cache sizes.
#pragma once

#include "kernels.hpp"

namespace softgate {

struct Machine {
    Isa isa;      // widest that the processor has, the operating system saves and this build contains
    Index l2;     // bytes, per core
    Index llc;    // bytes of the last-level cache as the operating system reports it
    int threads;  // hardware threads this process may use
};

const Machine& machine();

// The instruction set in use; set_isa refuses (returns false) one that the machine cannot run.
Isa current_isa();
bool set_isa(Isa isa);
const char* isa_name(Isa isa);
const KernelTable* kernels_for(Isa isa, Dtype dtype);

}  // namespace softgate
