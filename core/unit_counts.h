// How many units a sparse step computed.
#pragma once

#include <cstdint>

namespace hotset {

// Units that SelectUnits looked at and those that were active, over all rows and layers since the engine was made.
struct UnitCounts {
  uint64_t active = 0;
  uint64_t total = 0;
};

}  // namespace hotset
