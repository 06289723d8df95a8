// How many units were active. Where most are, a step computes all of them all the same.
#pragma once

#include <cstdint>
#include <optional>

namespace hotset {

// Units of all rows and layers since the engine was made: all there were, those whose detect value was asked for, those
// that were active, and those whose rows were read.
struct UnitCounts {
  uint64_t active = 0;
  uint64_t computed = 0;
  uint64_t total = 0;
  uint64_t candidates = 0;  // in exact mode all, in predict mode those that the predictor proposed
  uint64_t on_host = 0;     // active ones that the host computed; without an accelerator all
  // nullopt where no exact step has been made.
  std::optional<double> share() const { return share_of(active); }
  std::optional<double> computed_share() const { return share_of(computed); }
  std::optional<double> candidate_share() const { return share_of(candidates); }
  // Part of the active units that is on the host: cold. nullopt where none was active.
  std::optional<double> cold_share() const {
    if (active == 0) return std::nullopt;
    return static_cast<double>(on_host) / static_cast<double>(active);
  }
  // Candidates for each of them that was active: what a predictor costs. 1 would be an oracle.
  std::optional<double> over_selection() const {
    if (active == 0) return std::nullopt;
    return static_cast<double>(candidates) / static_cast<double>(active);
  }

  UnitCounts& operator+=(const UnitCounts& other) {
    active += other.active, computed += other.computed, total += other.total, candidates += other.candidates;
    on_host += other.on_host;
    return *this;
  }
  UnitCounts operator-(const UnitCounts& other) const {
    return {active - other.active, computed - other.computed, total - other.total, candidates - other.candidates,
            on_host - other.on_host};
  }

 private:
  std::optional<double> share_of(uint64_t n) const {
    if (total == 0) return std::nullopt;
    return static_cast<double>(n) / static_cast<double>(total);
  }
};

// What the hand-offs between a device and the host have moved since the engine was made.
struct Traffic {
  uint64_t to_host = 0, to_device = 0;  // bytes in shared buffers, written and read by a device's lane
  uint64_t n_signals = 0, n_waits = 0;  // of the device's lanes
  uint64_t fetched = 0;                 // bytes of weights that came to the device while it computed

  Traffic& operator+=(const Traffic& other) {
    to_host += other.to_host, to_device += other.to_device, fetched += other.fetched;
    n_signals += other.n_signals, n_waits += other.n_waits;
    return *this;
  }
};

}  // namespace hotset
