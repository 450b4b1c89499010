// Addresses as Python passes them.
#pragma once

#include <cstdint>

namespace softgate {

template <class T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace softgate
