// How many units were active. Where most are, a step computes all of them all the same.
#pragma once

#include <cstdint>
#include <optional>

namespace hotset {

// Units that SelectUnits looked at and those that were active, over all rows and layers since the engine was made.
struct UnitCounts {
  uint64_t active = 0;
  uint64_t total = 0;
  // nullopt where no exact step has been made.
  std::optional<double> share() const {
    if (total == 0) return std::nullopt;
    return static_cast<double>(active) / static_cast<double>(total);
  }
};

}  // namespace hotset
