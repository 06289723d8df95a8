// What the machine has: cores and memory, as far as this process may use them.
#pragma once

#include <cstdint>

namespace hotset {

// Physical cores this process may run on: one per group of hyper-threads; at least 1.
int32_t physical_cores();

// Bytes of memory of the machine, or of the control group's limit when that is lower; 0 when unknown.
uint64_t physical_memory_bytes();

}  // namespace hotset
