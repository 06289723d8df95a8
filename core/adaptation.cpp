#include "core/adaptation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace hotset {
namespace {

void check(bool is_right, const char* what, const char* expected) {
  if (!is_right) throw std::invalid_argument(error_text("adaptation", what, expected, "something else", "correct it"));
}

// The slots of [first, end) that come first by `before`, in that order, as many as `out` has room for.
template <class Before>
std::span<const int64_t> first_slots(int64_t first, int64_t end, std::span<int64_t> out, Before before) {
  const size_t n = std::min(out.size(), static_cast<size_t>(end - first));
  const auto found = out.first(n);
  std::iota(found.begin(), found.end(), first);
  std::make_heap(found.begin(), found.end(), before);
  for (int64_t slot = first + static_cast<int64_t>(n); slot < end; ++slot) {
    if (!before(slot, found.front())) continue;
    std::pop_heap(found.begin(), found.end(), before);
    found.back() = slot;
    std::push_heap(found.begin(), found.end(), before);
  }
  std::sort_heap(found.begin(), found.end(), before);
  return found;
}

}  // namespace

Adaptation::Adaptation(std::vector<AdaptiveLayer> layers, const AdaptationOptions& options)
    : options_(options), decay_(std::exp(-1 / options.window_rows)) {
  check(options.window_rows >= 1 && options.window_rows <= 1e6, "window_rows", "1 to 1e6");
  check(options.prior_rows >= 0 && options.prior_rows <= 1e6, "prior_rows", "0 to 1e6");
  check(options.deviations > 0 && options.swaps_per_step >= 0, "deviations and swaps_per_step", "above 0");
  check(options.max_swaps >= 1 && options.max_swaps <= 4096, "max_swaps", "1 to 4096");
  check(options.steps_per_round >= 1, "steps_per_round", "at least 1");
  for (AdaptiveLayer& given : layers) {
    check(given.n_units > 0 && given.n_hot >= 0 && given.n_hot <= given.n_units, "hot units", "0 to all");
    const size_t n = static_cast<size_t>(given.n_units);
    if (given.units_by_slot.empty()) {
      given.units_by_slot.resize(n);
      std::iota(given.units_by_slot.begin(), given.units_by_slot.end(), 0);
    }
    check(given.units_by_slot.size() == n, "units_by_slot", "one for each unit");
    check(given.frequencies.empty() || given.frequencies.size() == n, "frequencies", "one for each unit");
    Layer layer{std::move(given), std::vector<float>(n), std::vector<float>(n), std::vector<uint64_t>(n),
                std::vector<uint32_t>(n)};
    // As if they had been counted for a long time: the weights of all rows add up to 1 / (1 - decay).
    for (size_t slot = 0; slot < layer.given.frequencies.size(); ++slot) {
      layer.weighted[slot] = static_cast<float>(layer.given.frequencies[slot] / (1 - decay_));
      layer.prior[slot] = static_cast<float>(layer.given.frequencies[slot] * options.prior_rows);
    }
    layer.given.frequencies = {};
    const bool is_split = layer.given.n_hot > 0 && layer.given.n_hot < layer.given.n_units;
    if (is_split && !layer.given.is_fixed) open_.push_back(layers_.size());
    layers_.push_back(std::move(layer));
  }
  const size_t n_swaps = static_cast<size_t>(options.max_swaps);
  due_.reserve(open_.size()), swaps_.reserve(n_swaps);
  coldest_.resize(n_swaps), hottest_.resize(n_swaps);
  credit_ = static_cast<double>(options.max_swaps);
}

// While swaps are scarce nobody is looked at until there is one, so that it is always another layer's turn.
std::span<const size_t> Adaptation::end_step() {
  credit_ = std::min(credit_ + options_.swaps_per_step, static_cast<double>(options_.max_swaps));
  left_ = static_cast<int64_t>(credit_);
  due_.clear();
  if (left_ < 1) return due_;
  const size_t round = static_cast<size_t>(options_.steps_per_round);
  const size_t part = std::min(round, static_cast<size_t>(std::max<int64_t>(step_rows_, 1)));
  const size_t n = (open_.size() * part + round - 1) / round;
  for (size_t i = 0; i < n; ++i) {
    due_.push_back(open_[next_]);
    next_ = (next_ + 1) % open_.size();
  }
  return due_;
}

// The rows since the last time have the mean of their weights, as nobody knows which of them a unit was active for.
void Adaptation::count(size_t layer, std::span<const uint32_t> tallies) {
  Layer& to = layers_[layer];
  HS_CHECK(tallies.size() == to.tallies.size(), "adaptation");
  const int64_t n_new = n_rows_ - to.n_rows;
  if (n_new == 0) return;
  to.n_rows = n_rows_;
  const double old = std::pow(decay_, static_cast<double>(n_new));
  const float kept = static_cast<float>(old);
  const float each = static_cast<float>((1 - old) / (1 - decay_) / static_cast<double>(n_new));
  for (size_t slot = 0; slot < tallies.size(); ++slot) {
    const uint32_t n = tallies[slot] - to.tallies[slot];
    to.tallies[slot] = tallies[slot];
    to.counts[slot] += n;
    to.weighted[slot] = to.weighted[slot] * kept + static_cast<float>(n) * each;
  }
}

bool Adaptation::is_better(const Layer& layer, int64_t cold, int64_t hot) const {
  const double a = expected(layer, cold), b = expected(layer, hot);
  return a - b > options_.deviations * std::sqrt(a + b);
}

std::span<const SlotSwap> Adaptation::choose(size_t layer) {
  const Layer& from = layers_[layer];
  swaps_.clear();
  const size_t most = static_cast<size_t>(std::max<int64_t>(left_, 0));
  if (most == 0 || std::find(open_.begin(), open_.end(), layer) == open_.end()) return swaps_;
  const auto weight = [&](int64_t slot) { return expected(from, slot); };
  const auto hot = first_slots(0, from.given.n_hot, std::span(coldest_).first(most),
                               [&](int64_t a, int64_t b) { return weight(a) < weight(b); });
  const auto cold = first_slots(from.given.n_hot, from.given.n_units, std::span(hottest_).first(most),
                                [&](int64_t a, int64_t b) { return weight(a) > weight(b); });
  for (size_t i = 0; i < std::min(hot.size(), cold.size()) && is_better(from, cold[i], hot[i]); ++i)
    swaps_.push_back({hot[i], cold[i]});
  return swaps_;
}

void Adaptation::swapped(size_t layer, std::span<const SlotSwap> swaps) {
  Layer& of = layers_[layer];
  for (const SlotSwap& swap : swaps) {
    const size_t a = static_cast<size_t>(swap.hot), b = static_cast<size_t>(swap.cold);
    std::swap(of.weighted[a], of.weighted[b]);
    std::swap(of.prior[a], of.prior[b]);
    std::swap(of.counts[a], of.counts[b]);
    std::swap(of.given.units_by_slot[a], of.given.units_by_slot[b]);
  }
  const int64_t n = static_cast<int64_t>(swaps.size());
  n_swaps_ += swaps.size(), left_ -= n, credit_ -= static_cast<double>(n);
  // Those that come after it in this step had no chance, so they are the first of the next one.
  const auto at = std::find(open_.begin(), open_.end(), layer);
  if (n > 0 && left_ == 0) next_ = static_cast<size_t>(at + 1 - open_.begin()) % open_.size();
}

std::vector<uint64_t> Adaptation::counts_by_unit(size_t layer) const {
  const Layer& from = layers_[layer];
  std::vector<uint64_t> out(from.counts.size());
  for (size_t slot = 0; slot < from.counts.size(); ++slot)
    out[static_cast<size_t>(from.given.units_by_slot[slot])] = from.counts[slot];
  return out;
}

}  // namespace hotset
