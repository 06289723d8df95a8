// Decides which units change places between a device and the host while text is generated. Knows numbers only: no
// weights, no devices.
//
// Each unit has a count of the rows that it was active for, old rows weighing less and less, and what is known of it
// from a profile counts as some rows that never grow old. Where a cold unit's count is above a hot one's by more than
// chance makes it, the two change slots: what is counted goes along with a unit. Where a unit is computed changes no
// result, so all of this is about time alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hotset {

struct AdaptationOptions {
  // A row that so many others have followed weighs 1 / e of the latest.
  double window_rows = 128;
  // A known frequency counts as so many rows beside those of the window: the text so far tells little of units that
  // fire seldom, and what comes after a digression is mostly what was profiled. docs/BENCHMARKS.md has the figures.
  double prior_rows = 64;
  // Counts a and b, of cold and hot, differ when a - b exceeds so many times sqrt(a + b). Weights that fall off
  // exponentially make the deviation of a difference sqrt((a + b) / 2), and a prior adds to a + b but nothing to that,
  // so that 2.5 are 3.5 to 4.3 deviations: as the extremes of thousands of units are compared, fewer would let chance
  // in.
  double deviations = 2.5;
  double swaps_per_step = 1;  // at most so many on average
  int64_t max_swaps = 16;     // and in one step
  int64_t steps_per_round = 16;  // in which all layers are looked at; fewer steps of several rows
};

// Units in slots hot and cold of a layer change places.
struct SlotSwap {
  int64_t hot, cold;
};

struct AdaptiveLayer {
  int64_t n_units = 0, n_hot = 0;
  bool is_fixed = false;                // counted, but nothing changes places
  std::vector<int32_t> units_by_slot{};  // empty = slots are units
  std::vector<double> frequencies{};     // of the slots' units: share of rows; empty = not known
};

// Allocates nothing after construction. For one thread at a time.
class Adaptation {
 public:
  // Throws std::invalid_argument for layers or options that make no sense.
  Adaptation(std::vector<AdaptiveLayer> layers, const AdaptationOptions& options);

  // A step of n_rows rows begins, which counts even if it fails.
  void begin_step(int64_t n_rows) { n_rows_ += n_rows, step_rows_ = n_rows; }
  // It has ended: the layers to look at now, in turn; none while no swap is allowed. Valid until the next call.
  std::span<const size_t> end_step();

  // Takes what the layer's slots have been active for since the beginning, modulo 2^32: (n_units). Before choose().
  void count(size_t layer, std::span<const uint32_t> tallies);
  // The swaps of most use, each slot at most once, as many as this step may still make. Once they are made, swapped()
  // must be told. Valid until the next call.
  std::span<const SlotSwap> choose(size_t layer);
  void swapped(size_t layer, std::span<const SlotSwap> swaps);

  uint64_t n_swaps() const { return n_swaps_; }
  int64_t n_rows() const { return n_rows_; }
  int64_t n_units(size_t layer) const { return layers_[layer].given.n_units; }
  size_t n_layers() const { return layers_.size(); }
  int32_t unit_of_slot(size_t layer, int64_t slot) const {
    return layers_[layer].given.units_by_slot[static_cast<size_t>(slot)];
  }
  double weighted_count(size_t layer, int64_t slot) const { return layers_[layer].weighted[static_cast<size_t>(slot)]; }
  // (n_units) rows that each unit was active for, by unit, not by slot, as far as count() has been told.
  std::vector<uint64_t> counts_by_unit(size_t layer) const;

 private:
  struct Layer {
    AdaptiveLayer given;
    std::vector<float> weighted;     // by slot: the rows that its unit was active for, by their weight
    std::vector<float> prior;        // by slot: those that its unit's frequency counts as
    std::vector<uint64_t> counts;    // by slot: of its unit, all rows alike
    std::vector<uint32_t> tallies;   // by slot, whatever units it had: the latest that count() was given
    int64_t n_rows = 0;              // of the latest count()
  };
  static double expected(const Layer& layer, int64_t slot) {
    return layer.weighted[static_cast<size_t>(slot)] + layer.prior[static_cast<size_t>(slot)];
  }
  bool is_better(const Layer& layer, int64_t cold, int64_t hot) const;

  const AdaptationOptions options_;
  const double decay_;  // of a weight from row to row
  std::vector<Layer> layers_;
  std::vector<size_t> open_;  // layers that are not fixed
  std::vector<size_t> due_;
  std::vector<int64_t> coldest_, hottest_;  // slots that may change places, the likeliest first
  std::vector<SlotSwap> swaps_;
  size_t next_ = 0;     // in open_: whose turn it is
  double credit_ = 0;   // swaps that may be made
  int64_t left_ = 0;    // in this step
  int64_t n_rows_ = 0, step_rows_ = 0;
  uint64_t n_swaps_ = 0;
};

}  // namespace hotset
