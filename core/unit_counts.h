// How many units were active, and how many were computed: where most are active, a step computes all.
#pragma once

#include <cstdint>
#include <optional>

namespace hotset {

// Units that SelectUnits looked at, those of them that were active and those whose rows were read, over all rows and
// layers since the engine was made.
struct UnitCounts {
  uint64_t active = 0;
  uint64_t computed = 0;
  uint64_t total = 0;
  // nullopt where no exact step has been made.
  std::optional<double> share() const { return share_of(active); }
  std::optional<double> computed_share() const { return share_of(computed); }

  UnitCounts operator-(const UnitCounts& other) const {
    return {active - other.active, computed - other.computed, total - other.total};
  }

 private:
  std::optional<double> share_of(uint64_t n) const {
    if (total == 0) return std::nullopt;
    return static_cast<double>(n) / static_cast<double>(total);
  }
};

}  // namespace hotset
