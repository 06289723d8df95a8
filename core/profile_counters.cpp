#include "core/profile_counters.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

#include "core/architecture.h"
#include "core/error.h"

namespace hotset {
namespace {

constexpr int64_t kBlockUnits = 64;  // divides what a device shows at a time; whole bytes of a mask

}  // namespace

void ContributionHistogram::add(const Counts& counts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t bin = 0; bin < kBins; ++bin) counts_[bin] += counts[bin];
}

float ContributionHistogram::threshold(double share) const {
  const auto edge = [](size_t bin) {
    return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(bin) << kBinShift));
  };
  // The last bins hold infinity and NaN, which the pass has refused.
  const size_t end = std::bit_cast<uint32_t>(INFINITY) >> kBinShift;
  const auto sum_of = [&](size_t bin) {
    return counts_[bin] == 0 ? 0 : static_cast<double>(counts_[bin]) * (edge(bin) + edge(bin + 1)) / 2;
  };
  double total = 0, below = 0;
  for (size_t bin = 0; bin + 1 < end; ++bin) total += sum_of(bin);
  size_t bin = 0;
  while (bin + 1 < end && (below += sum_of(bin)) <= share * total) ++bin;
  return std::max(static_cast<float>(edge(bin)), FLT_MIN);
}

// One unit's values are `stride` floats apart from row to row.
struct ProfileCounters::Block {
  const ObservedUnits& shown;
  LayerProfile& layer;
  int64_t first, n;
  const float* detected(int64_t row) const { return shown.detected + row * shown.stride + first; }
  const float* h(int64_t row) const { return shown.h + row * shown.stride + first; }
};

ProfileCounters::ProfileCounters(const ModelConfig& config, const std::vector<std::vector<double>>& down_norms)
    : n_embd_(config.n_embd), n_ff_(config.n_ff), is_sparse_(is_sparse(config.activation)) {
  for (const std::vector<double>& layer : down_norms) norms_.emplace_back(layer.begin(), layer.end());
  previous_.assign(norms_.size(), std::vector<uint8_t>(static_cast<size_t>(n_ff_)));
  together_.assign(norms_.size(), std::vector<uint64_t>(static_cast<size_t>(n_ff_)));
}

void ProfileCounters::begin_pass(std::vector<LayerProfile>& layers, PassSample& sample) {
  layers_ = &layers, sample_ = &sample, histograms_ = nullptr;
  for (std::vector<uint64_t>& layer : together_) std::fill(layer.begin(), layer.end(), 0);
  n_rows_ = 0;
}

void ProfileCounters::begin_calibration(std::vector<ContributionHistogram>& histograms) { histograms_ = &histograms; }

void ProfileCounters::end_pass() {
  for (size_t layer = 0; layer < together_.size(); ++layer)
    for (const uint64_t n : together_[layer]) (*layers_)[layer].overlap += n;
}

void ProfileCounters::begin_step(const std::vector<Row>& rows) {
  first_row_ = n_rows_;
  n_rows_ += rows.size();
  follows_.clear();
  for (const Row& row : rows) follows_.push_back(row.position > 0);
}

void ProfileCounters::observe(const ObservedUnits& units) {
  if (histograms_) return fill_histogram(units);
  LayerProfile& layer = (*layers_)[static_cast<size_t>(units.layer)];
  const int64_t end = units.first_unit + units.n_units;
  for (int64_t first = units.first_unit; first < end; first += kBlockUnits)
    count({units, layer, first, std::min(kBlockUnits, end - first)});
  if (units.first_unit != 0 || sample_->stage_of_row.empty()) return;
  std::vector<float>& to = sample_->staged.layers[static_cast<size_t>(units.layer)].input;
  for (int64_t row = 0; row < units.n_rows; ++row) {
    const int32_t stage = sample_->stage_of_row[first_row_ + static_cast<size_t>(row)];
    if (stage >= 0) std::copy_n(units.in + row * units.in_stride, n_embd_, to.data() + stage * n_embd_);
  }
}

// A unit's sum of |h| is carried through all rows in order, so that how rows are cut into steps and passes changes no
// bit. x - x is 0 for a number and NaN for anything else, which no later row can undo.
void ProfileCounters::count(const Block& block) {
  const size_t n = static_cast<size_t>(block.n), first = static_cast<size_t>(block.first);
  uint64_t* const counts = block.layer.counts.data() + first;
  double* const sums = block.layer.h_sums.data() + first;
  uint8_t* const previous = previous_[static_cast<size_t>(block.shown.layer)].data() + first;
  uint64_t* const together = together_[static_cast<size_t>(block.shown.layer)].data() + first;
  float poison[kBlockUnits] = {};
  uint8_t active[kBlockUnits];
  for (int64_t row = 0; row < block.shown.n_rows; ++row) {
    const float *const detected = block.detected(row), *const h = block.h(row);
    const uint8_t follows = follows_[static_cast<size_t>(row)];
    find_active(block, row, active);
    for (size_t unit = 0; unit < n; ++unit) {
      counts[unit] += active[unit];
      together[unit] += active[unit] & previous[unit] & follows;
      previous[unit] = active[unit];
      sums[unit] += static_cast<double>(std::fabs(h[unit]));
      poison[unit] += (detected[unit] - detected[unit]) + (h[unit] - h[unit]);
    }
    if (!sample_->stage_of_row.empty()) keep(block, row, active);
  }
  for (size_t unit = 0; unit < n; ++unit)
    if (poison[unit] != 0) fail(block.shown.layer, block.first + static_cast<int64_t>(unit));
}

void ProfileCounters::find_active(const Block& block, int64_t row, uint8_t* active) const {
  if (is_sparse_) {
    const float* const detected = block.detected(row);
    for (int64_t unit = 0; unit < block.n; ++unit) active[unit] = !(detected[unit] <= 0);
    return;
  }
  const float* const h = block.h(row);
  const float* const norms = norms_[static_cast<size_t>(block.shown.layer)].data() + block.first;
  const float threshold = block.layer.threshold;
  for (int64_t unit = 0; unit < block.n; ++unit) active[unit] = std::fabs(h[unit]) * norms[unit] >= threshold;
}

void ProfileCounters::keep(const Block& block, int64_t row, const uint8_t* active) {
  const int32_t stage = sample_->stage_of_row[first_row_ + static_cast<size_t>(row)];
  if (stage < 0) return;
  uint8_t* const mask = sample_->staged.layers[static_cast<size_t>(block.shown.layer)].mask.data() +
                        stage * ((n_ff_ + 7) / 8) + block.first / 8;
  for (int64_t unit = 0; unit < block.n; ++unit)
    mask[unit / 8] = static_cast<uint8_t>(mask[unit / 8] | active[unit] << unit % 8);
}

void ProfileCounters::fill_histogram(const ObservedUnits& units) {
  ContributionHistogram::Counts counts{};
  const float* const norms = norms_[static_cast<size_t>(units.layer)].data();
  for (int64_t row = 0; row < units.n_rows; ++row)
    for (int64_t unit = units.first_unit; unit < units.first_unit + units.n_units; ++unit) {
      const float value = std::fabs(units.h[row * units.stride + unit]) * norms[unit];
      if (!std::isfinite(value)) fail(units.layer, unit);
      ++counts[std::bit_cast<uint32_t>(value) >> ContributionHistogram::kBinShift];
    }
  (*histograms_)[static_cast<size_t>(units.layer)].add(counts);
}

void ProfileCounters::fail(int64_t layer, int64_t unit) const {
  throw Error(error_text("profile", cat("activation of layer ", layer, ", unit ", unit), "a finite number",
                         "NaN or infinity", "check the model: 'hotset perplexity' shows its loss"));
}

}  // namespace hotset
