// The observer behind Profiler: counts what one pass shows, and keeps it apart until the pass has succeeded.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "core/device.h"
#include "core/model_config.h"
#include "core/profile.h"

namespace hotset {

// Sums of the contributions of a layer by size, in bins of 1/32 octave, which a float's bits are from kBinShift on.
// Bins hold numbers of contributions, so that the order in which threads add does not matter.
class ContributionHistogram {
 public:
  static constexpr int kBinShift = 18;
  static constexpr size_t kBins = size_t{1} << (31 - kBinShift);
  using Counts = std::array<uint32_t, kBins>;

  ContributionHistogram() : counts_(kBins) {}
  void add(const Counts& counts);
  // The largest bin edge below which lies at most `share` of the sum; positive.
  float threshold(double share) const;

 private:
  std::mutex mutex_;
  std::vector<uint64_t> counts_;
};

// Rows that a pass samples: row r is kept as number stage_of_row[r] of the pass, or not at all (-1).
struct PassSample {
  std::vector<int32_t> stage_of_row;
  ProfileSamples staged;  // tokens are not used
};

// Within a pass a unit is touched by one thread at a time and rows come in order: no locks but the histograms'.
class ProfileCounters final : public UnitObserver {
 public:
  ProfileCounters(const ModelConfig& config, const std::vector<std::vector<double>>& down_norms);

  // Begins a pass that counts into `layers` and `sample`, which must live until it ends.
  void begin_pass(std::vector<LayerProfile>& layers, PassSample& sample);
  // Begins a pass that fills the histograms only.
  void begin_calibration(std::vector<ContributionHistogram>& histograms);
  // Adds what a successful pass has kept per unit to its layers.
  void end_pass();

  void begin_step(const std::vector<Row>& rows) override;
  void observe(const ObservedUnits& units) override;

 private:
  struct Block;  // some units of a layer, all rows of a step
  void count(const Block& block);
  void fill_histogram(const ObservedUnits& units);
  void find_active(const Block& block, int64_t row, uint8_t* active) const;
  void keep(const Block& block, int64_t row, const uint8_t* active);
  [[noreturn]] void fail(int64_t layer, int64_t unit) const;

  const int64_t n_embd_, n_ff_;
  const bool is_sparse_;
  std::vector<std::vector<float>> norms_;  // per layer and unit
  std::vector<LayerProfile>* layers_ = nullptr;
  PassSample* sample_ = nullptr;
  std::vector<ContributionHistogram>* histograms_ = nullptr;
  std::vector<std::vector<uint8_t>> previous_;   // per layer and unit: active in the row before
  std::vector<std::vector<uint64_t>> together_;  // the same: rows of the pass in which it was active after being so
  size_t first_row_ = 0, n_rows_ = 0;            // of the running step and of all so far, within the pass
  std::vector<uint8_t> follows_;                 // per row of the step: whether the row before is the token before
};

}  // namespace hotset
