// Binds the profiler and the calibrator: token sequences in, counters out as arrays.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <span>

#include "core/calibration.h"
#include "core/profile.h"
#include "python/bindings.h"

namespace hotset::python {

namespace {

using Sequences = std::vector<std::vector<int32_t>>;
template <class T, size_t kDims>
using Input = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
template <class T, size_t kDims>
using Output = nb::ndarray<nb::numpy, T, nb::ndim<kDims>, nb::c_contig>;

// An array that owns a copy of equally long parts, one after the other.
template <class T, size_t kDims>
Output<T, kDims> joined(const std::vector<std::span<const T>>& parts, std::array<size_t, kDims> shape) {
  size_t n = 1;
  for (const size_t each : shape) n *= each;
  auto values = std::make_unique<T[]>(std::max<size_t>(n, 1));
  T* at = values.get();
  for (const std::span<const T>& part : parts) at = std::copy(part.begin(), part.end(), at);
  nb::capsule owner(values.get(), [](void* data) noexcept { delete[] static_cast<T*>(data); });
  return Output<T, kDims>(values.release(), kDims, shape.data(), owner);
}

// The same part of every layer.
template <class T, class Layers, class Part>
std::vector<std::span<const T>> parts_of(const Layers& layers, const Part& part) {
  std::vector<std::span<const T>> out;
  for (const auto& layer : layers) out.emplace_back(layer.*part);
  return out;
}

// Part i of an array of n equal ones.
template <class Array>
auto part(const Array& from, size_t i) {
  const size_t each = from.shape(0) > 0 ? from.size() / from.shape(0) : 0;
  using T = std::remove_cvref_t<decltype(*from.data())>;
  return std::vector<T>(from.data() + i * each, from.data() + (i + 1) * each);
}

class NativeProfiler {
 public:
  NativeProfiler(const NativeEngine& engine, const EngineOptions& options, int64_t n_samples) {
    ReleasedGil release;
    profiler_ = std::make_unique<Profiler>(engine.shared_model(), options, n_samples);
  }
  NativeProfiler(const NativeProfiler&) = delete;
  NativeProfiler& operator=(const NativeProfiler&) = delete;
  ~NativeProfiler() {
    ReleasedGil release;
    profiler_.reset();
  }

  void calibrate(const Sequences& sequences, double share) {
    Interrupt interrupt;
    compute_without_gil(interrupt, [&] { profiler_->calibrate(sequences, share, interrupt.stop_check()); });
  }
  void add(const Sequences& sequences) {
    Interrupt interrupt;
    compute_without_gil(interrupt, [&] { profiler_->add(sequences, interrupt.stop_check()); });
  }
  uint64_t n_tokens() const { return profiler_->state().n_tokens; }

  Output<double, 2> down_norms() const {
    std::vector<std::span<const double>> rows(profiler_->down_norms().begin(), profiler_->down_norms().end());
    return joined<double, 2>(rows, {rows.size(), rows[0].size()});
  }

  nb::dict state() const {
    const ProfileState& state = profiler_->state();
    const size_t n_layer = state.layers.size(), n_ff = state.layers[0].counts.size(), n = state.samples.tokens.size();
    std::vector<uint64_t> overlaps;
    std::vector<float> thresholds;
    for (const LayerProfile& layer : state.layers)
      overlaps.push_back(layer.overlap), thresholds.push_back(layer.threshold);
    const auto& samples = state.samples.layers;
    const size_t n_embd = n > 0 ? samples[0].input.size() / n : 0, mask_bytes = n > 0 ? samples[0].mask.size() / n : 0;
    nb::dict out;
    out["n_tokens"] = state.n_tokens;
    out["counts"] = joined<uint64_t, 2>(parts_of<uint64_t>(state.layers, &LayerProfile::counts), {n_layer, n_ff});
    out["h_sums"] = joined<double, 2>(parts_of<double>(state.layers, &LayerProfile::h_sums), {n_layer, n_ff});
    out["overlaps"] = joined<uint64_t, 1>({overlaps}, {n_layer});
    out["thresholds"] = joined<float, 1>({thresholds}, {n_layer});
    out["sample_tokens"] = joined<uint64_t, 1>({state.samples.tokens}, {n});
    out["sample_inputs"] =
        joined<float, 3>(parts_of<float>(samples, &ProfileSamples::Layer::input), {n_layer, n, n_embd});
    out["sample_masks"] =
        joined<uint8_t, 3>(parts_of<uint8_t>(samples, &ProfileSamples::Layer::mask), {n_layer, n, mask_bytes});
    return out;
  }

  void restore(uint64_t n_tokens, const Input<uint64_t, 2>& counts, const Input<double, 2>& h_sums,
               const Input<uint64_t, 1>& overlaps, const Input<float, 1>& thresholds,
               const Input<uint64_t, 1>& sample_tokens, const Input<float, 3>& sample_inputs,
               const Input<uint8_t, 3>& sample_masks) {
    const size_t n_layer = counts.shape(0);
    for (const size_t n : {h_sums.shape(0), overlaps.shape(0), thresholds.shape(0), sample_inputs.shape(0),
                           sample_masks.shape(0)})
      if (n != n_layer)
        throw std::invalid_argument(
            error_text("profile", "saved state", cat("arrays of ", n_layer, " layers"), cat(n), "begin anew"));
    ProfileState state;
    state.n_tokens = n_tokens;
    state.samples.tokens.assign(sample_tokens.data(), sample_tokens.data() + sample_tokens.size());
    for (size_t i = 0; i < n_layer; ++i) {
      state.layers.push_back({part(counts, i), part(h_sums, i), overlaps.data()[i], thresholds.data()[i]});
      state.samples.layers.push_back({part(sample_inputs, i), part(sample_masks, i)});
    }
    ReleasedGil release;
    profiler_->restore(std::move(state));
  }

 private:
  std::unique_ptr<Profiler> profiler_;
};

class NativeCalibrator {
 public:
  NativeCalibrator(const NativeEngine& engine, const EngineOptions& options, const SlackBins& bins) {
    ReleasedGil release;
    calibrator_ = std::make_unique<Calibrator>(engine.shared_model(), options, bins);
  }
  NativeCalibrator(const NativeCalibrator&) = delete;
  NativeCalibrator& operator=(const NativeCalibrator&) = delete;
  ~NativeCalibrator() {
    ReleasedGil release;
    calibrator_.reset();
  }

  void add(const Sequences& sequences) {
    Interrupt interrupt;
    compute_without_gil(interrupt, [&] { calibrator_->add(sequences, interrupt.stop_check()); });
  }

  nb::list layers() const {
    nb::list out;
    for (const SlackHistogram& layer : calibrator_->layers()) {
      if (layer.units.empty()) {
        out.append(nb::none());
        continue;
      }
      const size_t n = layer.units.size();
      nb::dict arrays;
      arrays["units"] = joined<uint64_t, 1>({layer.units}, {n});
      arrays["active"] = joined<uint64_t, 1>({layer.active}, {n});
      arrays["mass"] = joined<double, 1>({layer.mass}, {n});
      out.append(arrays);
    }
    return out;
  }

 private:
  std::unique_ptr<Calibrator> calibrator_;
};

void bind_calibrator(nb::module_& module) {
  nb::class_<NativeCalibrator>(module, "Calibrator",
                               "Counts units by the slack they need to be candidates. Used by one thread at a time.")
      .def(
          "__init__",
          [](NativeCalibrator* self, const NativeEngine& engine, const std::string& predictor,
             const std::string& sidecar, int64_t n_ctx, int32_t n_threads, int32_t n_batch, double low, double high,
             int64_t n_bins) {
            EngineOptions options;
            options.mode = "predict";
            options.predictor = predictor;
            options.sidecar = sidecar;
            options.n_ctx = n_ctx;
            options.n_threads = n_threads;
            options.n_batch = n_batch;
            new (self) NativeCalibrator(engine, options, {low, high, n_bins});
          },
          nb::arg("engine"), nb::kw_only(), nb::arg("predictor"), nb::arg("sidecar"), nb::arg("n_ctx"),
          nb::arg("n_threads"), nb::arg("n_batch"), nb::arg("low"), nb::arg("high"), nb::arg("n_bins"))
      .def("add", &NativeCalibrator::add, nb::arg("sequences"))
      .def("layers", &NativeCalibrator::layers, nb::sig("def layers(self) -> list[dict[str, typing.Any] | None]"),
           "For each layer arrays (n_bins) `units`, `active` and `mass`; None without a predictor.");
}

}  // namespace

void bind_profile(nb::module_& module) {
  bind_calibrator(module);
  nb::class_<NativeProfiler>(module, "Profiler", "Counts the active units of a model. Used by one thread at a time.")
      .def(
          "__init__",
          [](NativeProfiler* self, const NativeEngine& engine, const std::string& kv_type, int64_t n_ctx,
             int32_t n_threads, int32_t n_batch, int64_t n_samples, const std::string& device,
             std::optional<uint64_t> vram_budget, int32_t n_sequences) {
            EngineOptions options;
            options.device = device;
            options.vram_budget = vram_budget;
            options.n_sequences = n_sequences;
            options.kv_type = kv_type;
            options.n_ctx = n_ctx;
            options.n_threads = n_threads;
            options.n_batch = n_batch;
            new (self) NativeProfiler(engine, options, n_samples);
          },
          nb::arg("engine"), nb::kw_only(), nb::arg("kv_type"), nb::arg("n_ctx"), nb::arg("n_threads"),
          nb::arg("n_batch"), nb::arg("n_samples"), nb::arg("device") = "auto", nb::arg("vram_budget") = nb::none(),
          nb::arg("n_sequences") = 0)
      .def("calibrate", &NativeProfiler::calibrate, nb::arg("sequences"), nb::arg("share"))
      .def("add", &NativeProfiler::add, nb::arg("sequences"))
      .def_prop_ro("n_tokens", &NativeProfiler::n_tokens)
      .def("down_norms", &NativeProfiler::down_norms, "Lengths of the down rows (n_layer, n_ff).")
      .def("state", &NativeProfiler::state, nb::sig("def state(self) -> dict[str, typing.Any]"),
           "What was counted, by the names of restore().")
      .def("restore", &NativeProfiler::restore, nb::kw_only(), nb::arg("n_tokens"), nb::arg("counts"),
           nb::arg("h_sums"), nb::arg("overlaps"), nb::arg("thresholds"), nb::arg("sample_tokens"),
           nb::arg("sample_inputs"), nb::arg("sample_masks"));
}

}  // namespace hotset::python
