#include "core/calibration.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include "core/device.h"
#include "core/predictor.h"
#include "core/profile.h"

namespace hotset {
namespace {

constexpr int64_t kMostBins = 1 << 20;

// Counts of some units of a layer. A task shows the same units step after step, and rows come in order, so that the
// order in which masses are added does not depend on threads; blocks are joined in order of units.
using BlockHistograms = std::map<int64_t, SlackHistogram>;  // by first unit

void add_to(SlackHistogram& sum, const SlackHistogram& part) {
  for (size_t i = 0; i < part.units.size(); ++i)
    sum.units[i] += part.units[i], sum.active[i] += part.active[i], sum.mass[i] += part.mass[i];
}

}  // namespace

struct Calibrator::Impl final : UnitObserver {
  std::shared_ptr<const Model> model;
  SlackBins bins;
  std::vector<std::vector<double>> down_norms;
  std::vector<std::vector<float>> errors_of_layers;  // of each unit, by layer; empty without planes
  std::shared_ptr<Engine> engine;
  EngineOptions options;                       // that it was made with
  std::vector<BlockHistograms> counted, pass;  // by layer: for good, and those of the pass that runs
  std::mutex mutex;                            // guards the maps of `pass`, not the histograms in them

  SlackHistogram empty() const {
    const size_t n = static_cast<size_t>(bins.n);
    return {std::vector<uint64_t>(n), std::vector<uint64_t>(n), std::vector<double>(n)};
  }
  SlackHistogram& histogram_of(const ObservedUnits& shown) {
    const std::lock_guard<std::mutex> lock(mutex);
    BlockHistograms& blocks = pass[static_cast<size_t>(shown.layer)];
    const auto found = blocks.find(shown.first_unit);
    return found != blocks.end() ? found->second : blocks.emplace(shown.first_unit, empty()).first->second;
  }
  size_t bin_of(double slack) const {
    const double at = (slack - bins.low) / (bins.high - bins.low) * static_cast<double>(bins.n);
    if (!(at > 0)) return 0;
    return static_cast<size_t>(std::min(at, static_cast<double>(bins.n - 1)));
  }

  void begin_step(const std::vector<Row>&) override {}
  void observe(const ObservedUnits& shown) override;
};

void Calibrator::Impl::observe(const ObservedUnits& shown) {
  if (shown.margins == nullptr) return;
  const Predictor::Layer& layer = engine->predictor()->layers()[static_cast<size_t>(shown.layer)];
  const std::vector<float>& errors = errors_of_layers[static_cast<size_t>(shown.layer)];
  const std::vector<double>& norms = down_norms[static_cast<size_t>(shown.layer)];
  const int64_t n_embd = model->config().n_embd;
  SlackHistogram& out = histogram_of(shown);
  for (int64_t row = 0; row < shown.n_rows; ++row) {
    const float* const in = shown.in + row * shown.in_stride;
    double squares = 0;
    for (int64_t i = 0; i < n_embd; ++i) squares += static_cast<double>(in[i]) * static_cast<double>(in[i]);
    for (int64_t unit = shown.first_unit; unit < shown.first_unit + shown.n_units; ++unit) {
      const int64_t at = row * shown.stride + unit;
      const double share =
          errors.empty() ? 1 : static_cast<double>(errors[static_cast<size_t>(unit)]) * std::sqrt(squares);
      const size_t bin = bin_of(static_cast<double>(layer.z) - static_cast<double>(shown.margins[at]) / share);
      ++out.units[bin];
      if (shown.detected[at] <= 0) continue;
      ++out.active[bin];
      out.mass[bin] += std::fabs(static_cast<double>(shown.h[at])) * norms[static_cast<size_t>(unit)];
    }
  }
}

Calibrator::Calibrator(std::shared_ptr<const Model> model, const EngineOptions& options, const SlackBins& bins)
    : impl_(std::make_unique<Impl>()) {
  if (!(bins.low < bins.high) || !std::isfinite(bins.high - bins.low) || bins.n < 2 || bins.n > kMostBins)
    throw std::invalid_argument(error_text("calibration", "bins", cat("2 to ", kMostBins, " between two numbers"),
                                           cat(bins.n, " from ", bins.low, " to ", bins.high), "correct them"));
  impl_->model = std::move(model);
  impl_->bins = bins;
  EngineOptions all = options;
  all.mode = "predict";
  all.observer = impl_.get();
  impl_->engine = Engine::create(impl_->model, all);
  impl_->options = all;
  for (const Predictor::Layer& layer : impl_->engine->predictor()->layers())
    if (!std::isfinite(layer.z))
      throw std::invalid_argument(error_text("calibration", "thresholds of the predictor", "finite ones", cat(layer.z),
                                             "use a predictor with others, such as bit_planes:2:0"));
  for (size_t i = 0; i < impl_->engine->predictor()->layers().size(); ++i)
    impl_->errors_of_layers.push_back(impl_->engine->predictor()->errors_by_unit(i));
  EngineOptions dense = options;
  dense.mode = "dense", dense.device = "cpu";  // for the lengths alone
  dense.predictor.clear();
  impl_->down_norms = Profiler(impl_->model, dense, 0).down_norms();
  impl_->counted.resize(impl_->down_norms.size());
}

Calibrator::~Calibrator() = default;

void Calibrator::add(std::span<const std::vector<int32_t>> sequences, const StopCheck& stop) {
  impl_->pass = std::vector<BlockHistograms>(impl_->counted.size());
  run_sequences(impl_->engine, impl_->options, sequences, stop);
  for (size_t layer = 0; layer < impl_->pass.size(); ++layer)
    for (const auto& [first, part] : impl_->pass[layer])
      add_to(impl_->counted[layer].try_emplace(first, impl_->empty()).first->second, part);
}

std::vector<SlackHistogram> Calibrator::layers() const {
  std::vector<SlackHistogram> out(impl_->counted.size());
  for (size_t layer = 0; layer < out.size(); ++layer) {
    if (impl_->counted[layer].empty()) continue;
    out[layer] = impl_->empty();
    for (const auto& [first, part] : impl_->counted[layer]) add_to(out[layer], part);
  }
  return out;
}

}  // namespace hotset
