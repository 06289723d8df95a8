#include "core/weight_placer.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <optional>

#include "core/error.h"
#include "core/gguf.h"
#include "core/thread_pool.h"

namespace hotset {
namespace {

// Rows are gathered in pieces of about this size, which stay in a core's cache on their way to the device.
constexpr size_t kPieceBytes = size_t{1} << 20;

constexpr uint64_t align(uint64_t n) {
  return (n + WeightPlacer::kAlignment - 1) / WeightPlacer::kAlignment * WeightPlacer::kAlignment;
}

bool is_identity(const std::vector<int32_t>& units) {
  for (size_t i = 0; i < units.size(); ++i)
    if (units[i] != static_cast<int32_t>(i)) return false;
  return true;
}

// The view of `n` rows from `first` on.
TensorView rows_of(TensorView view, int64_t first, int64_t n) {
  view.data = view.row(first), view.n_rows = n;
  return view;
}

// Rows units[first], .. (or first, .. without units) of a tensor, n_rows of them, for the place whose view is `to`.
struct Job {
  TensorView from;
  const int32_t* units;
  int64_t first, n_rows;
  NamedTensor* to;
  bool on_device;
  bool is_turned;   // `from` is a shape: the rows are made from the layer's ffn_down
  uint64_t offset;  // in the device's memory, or in the layer's arena
  size_t layer;
};

// Copies a job's rows to `to`, a piece at a time over the team; `staging` has memory for a piece for each worker.
void gather(Device& device, ThreadPool& pool, const std::vector<std::unique_ptr<DeviceMemory>>& staging, const Job& job,
            std::byte* to) {
  const size_t stride = job.from.row_stride;
  const int64_t each = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / stride));
  std::atomic<int64_t> next{0};
  pool.run([&](int32_t worker) {
    for (int64_t begin = each * next++; begin < job.n_rows; begin = each * next++) {
      const int64_t n = std::min(each, job.n_rows - begin);
      const size_t n_bytes = static_cast<size_t>(n) * stride, at = static_cast<size_t>(begin) * stride;
      if (!job.units) {  // a device takes rows that lie together as they are
        if (job.on_device)
          device.upload(to + at, job.from.row(job.first + begin), n_bytes);
        else
          std::memcpy(to + at, job.from.row(job.first + begin), n_bytes);
        continue;
      }
      const bool is_staged = job.on_device && n_bytes <= kPieceBytes;
      std::vector<std::byte> large(job.on_device && !is_staged ? n_bytes : 0);
      std::byte* const rows = !job.on_device ? to + at
                              : is_staged    ? staging[static_cast<size_t>(worker)]->data()
                                             : large.data();
      for (int64_t i = 0; i < n; ++i)
        std::memcpy(rows + static_cast<size_t>(i) * stride, job.from.row(job.units[job.first + begin + i]), stride);
      if (job.on_device) device.upload(to + at, rows, n_bytes);
    }
  });
}

}  // namespace

// What goes where: decided before anything is allocated, so that all sizes are known.
class WeightPlacer::Layout {
 public:
  Layout(PlacedWeights& out, const Model& model, const Weights& weights, const Placement& placement,
         const std::vector<std::vector<int32_t>>& units_by_slot, const WeightPlacer::Options& options)
      : copies_cold_(options.copies_cold), arena_bytes_(weights.layers.size()) {
    out.layers.resize(weights.layers.size());
    const Predictor* const predictor = options.predictor;
    for (layer_ = 0; layer_ < weights.layers.size(); ++layer_) {
      const bool as_it_lies = units_by_slot.empty() || is_identity(units_by_slot[layer_]);
      units_ = as_it_lies ? nullptr : units_by_slot[layer_].data();
      PlacedLayer& to = out.layers[layer_];
      is_turned_ = !model.weights().layers[layer_].ffn_down_t;
      layer(to, weights.layers[layer_], placement.layers[layer_]);
      if (units_) to.unit_of_slot = unit_of_slot(units_by_slot[layer_]);
      if (predictor && predictor->layers()[layer_]) predict(to, weights.layers[layer_], predictor->layers()[layer_]);
    }
    out.head = placement.head;
    out.token_embd = weights.token_embd, out.token_embd_proj = weights.token_embd_proj;
    out.position_embd = weights.position_embd;
    out.rope_freqs = weights.rope_freqs;
    const bool head_on_device = placement.head == Place::kDevice;
    for (NamedTensor HeadWeights::*each :
         {&HeadWeights::norm, &HeadWeights::norm_b, &HeadWeights::proj, &HeadWeights::output})
      whole(out.head_weights.*each, weights.head.*each, head_on_device);
  }

  const std::vector<Job>& jobs() const { return jobs_; }
  uint64_t device_bytes() const { return device_bytes_; }
  uint64_t arena_bytes(size_t layer) const { return arena_bytes_[layer]; }
  const std::vector<bool>& can_exchange() const { return can_exchange_; }

 private:
  void layer(PlacedLayer& out, const LayerWeights& w, const LayerPlacement& place) {
    out.place = place, out.n_units = w.ffn_up.view.n_rows;
    const bool on_device = place.attention == Place::kDevice;
    LayerWeights& side = on_device ? out.device : out.host;
    for (NamedTensor LayerWeights::*each : kBesideUnits) whole(side.*each, w.*each, on_device);
    const bool gated = static_cast<bool>(w.ffn_gate);
    const int64_t hot = place.n_hot;
    copies_host_ = units_ || (copies_cold_ && hot > 0 && hot < out.n_units);
    const int64_t detected_there = place.detect == DetectPlace::kDevice ? out.n_units : hot;
    cut(out, w, &LayerWeights::ffn_gate, detected_there);
    cut(out, w, &LayerWeights::ffn_gate_b, detected_there);
    cut(out, w, &LayerWeights::ffn_up, gated ? hot : detected_there);
    cut(out, w, &LayerWeights::ffn_up_b, gated ? hot : detected_there);
    can_exchange_.push_back(copies_host_ && hot > 0 && hot < out.n_units);
    copies_host_ = copies_host_ || is_turned_;
    makes_rows_ = is_turned_;
    cut(out, w, &LayerWeights::ffn_down_t, hot);
    makes_rows_ = false;
  }

  // What all units need is on each side that has rows, which are in order of slots already.
  void predict(PlacedLayer& out, const LayerWeights& w, const Predictor::Layer& p) {
    const int64_t n_device = out.place.predictor_on_device() ? out.n_units : out.place.n_hot;
    Predictor::Layer none;
    none.n_bits = p.n_bits, none.z = p.z, none.has_relu = p.has_relu, none.reads_residual = p.reads_residual;
    out.device_predictor = out.host_predictor = none;
    if (n_device > 0) whole(out.device_predictor.fc1, p.fc1, true);
    if (n_device < out.n_units) whole(out.host_predictor.fc1, p.fc1, false);
    if (p.planes && out.place.detect == DetectPlace::kSplit && out.place.device_predicts)
      cut(out.device_predictor.bias, none.bias, w.ffn_gate ? w.ffn_gate_b : w.ffn_up_b, out.n_units, n_device);
    units_ = nullptr, copies_host_ = false;
    using Part = NamedTensor Predictor::Layer::*;
    for (const Part each : {&Predictor::Layer::planes, &Predictor::Layer::low, &Predictor::Layer::step,
                            &Predictor::Layer::error, &Predictor::Layer::fc2, &Predictor::Layer::bias})
      cut(out.device_predictor.*each, out.host_predictor.*each, p.*each, out.n_units, n_device);
  }

  NamedTensor unit_of_slot(const std::vector<int32_t>& units) const {
    const std::byte* const data = reinterpret_cast<const std::byte*>(units.data());
    return {cat("blk.", layer_, ".unit_of_slot"),
            {data, DType::kI32, static_cast<int64_t>(units.size()), 1, units.size() * sizeof(int32_t)}};
  }

  void cut(PlacedLayer& out, const LayerWeights& w, NamedTensor LayerWeights::*which, int64_t n_device) {
    cut(out.device.*which, out.host.*which, w.*which, out.n_units, n_device);
  }

  // The first n_device slots of a tensor of units go to the device, the others stay.
  void cut(NamedTensor& device, NamedTensor& host, const NamedTensor& tensor, int64_t n_units, int64_t n_device) {
    if (!tensor) return;
    TensorView rows = tensor.view;
    const bool is_vector = rows.n_rows != n_units;  // of one value a unit
    if (is_vector) rows = {rows.data, rows.dtype, 1, rows.n_cols, row_bytes(rows.dtype, 1)};
    add(device, tensor.name, rows, 0, n_device, true, is_vector);
    add(host, tensor.name, rows, n_device, n_units - n_device, false, is_vector);
  }

  void add(NamedTensor& to, const std::string& name, const TensorView& rows, int64_t first, int64_t n, bool on_device,
           bool is_vector) {
    if (n == 0) return;
    to.name = name;
    to.view = rows_of(rows, first, n);
    if (on_device || copies_host_) push({rows, units_, first, n, &to, on_device, makes_rows_, 0, layer_});
    if (is_vector) to.view = {to.view.data, rows.dtype, n, 1, static_cast<size_t>(n) * rows.row_stride};
  }

  void whole(NamedTensor& to, const NamedTensor& from, bool on_device) {
    to = from;
    if (from && on_device) push({from.view, nullptr, 0, from.view.n_rows, &to, true, false, 0, layer_});
  }

  void push(Job job) {
    uint64_t& at = job.on_device ? device_bytes_ : arena_bytes_[layer_];
    job.offset = at;
    at += align(static_cast<uint64_t>(job.n_rows) * job.from.row_stride);
    jobs_.push_back(job);
  }

  const bool copies_cold_;
  bool copies_host_ = false;  // of the layer being laid out
  bool is_turned_ = false;    // its file has the standard ffn_down
  bool makes_rows_ = false;   // of the tensor being cut
  std::vector<bool> can_exchange_;
  size_t layer_ = 0;
  const int32_t* units_ = nullptr;  // of the layer being laid out; null = slots are units
  std::vector<Job> jobs_;
  uint64_t device_bytes_ = 0;
  std::vector<uint64_t> arena_bytes_;
};

WeightPlacer::WeightPlacer(const Model& model, std::shared_ptr<const Relayout> rows, const Placement& placement,
                           const std::vector<std::vector<int32_t>>& units_by_slot, Device& device,
                           const Options& options) {
  const Layout layout(placed_, model, rows->weights(), placement, units_by_slot, options);
  device_bytes_ = layout.device_bytes();
  for (size_t i = 0; i < placed_.layers.size(); ++i) arena_bytes_ += layout.arena_bytes(i);
  can_exchange_ = layout.can_exchange();
  if (!options.is_outline && device_bytes_ > device.free_bytes())
    throw OutOfMemoryError(error_text("engine", "device memory for weights", cat("at most ", device.free_bytes(), " bytes"),
                                      cat(device_bytes_), "lower --vram-budget"));
  copy(model, device, options, layout);
}

WeightPlacer::~WeightPlacer() = default;

// Points all views to their places, and fills those a layer at a time.
void WeightPlacer::copy(const Model& model, Device& device, const Options& options, const Layout& layout) {
  const auto start = std::chrono::steady_clock::now();
  // Addresses that tell nothing but that there is something.
  std::byte* base = reinterpret_cast<std::byte*>(kAlignment);
  if (!options.is_outline && device_bytes_ > 0) {
    memory_ = device.alloc(device_bytes_);
    base = memory_->data();
  }
  std::vector<std::unique_ptr<DeviceMemory>> staging;
  for (int32_t i = 0; i < options.n_threads && !options.is_outline; ++i)
    staging.push_back(device.alloc_shared(kPieceBytes));
  ThreadPool pool(options.is_outline ? 1 : options.n_threads);
  DownRows down_rows(model, pool);
  size_t next = 0;
  for (size_t layer = 0; next < layout.jobs().size(); ++layer) {
    const size_t first = next;
    while (next < layout.jobs().size() && layout.jobs()[next].layer == layer) ++next;
    std::byte* arena = base;
    if (!options.is_outline && layer < placed_.layers.size() && layout.arena_bytes(layer) > 0) {
      arenas_.emplace_back(layout.arena_bytes(layer), Pages::kHuge);
      arena = arenas_.back().data();
    }
    std::optional<Arena> turned;
    for (size_t i = first; i < next; ++i) {
      Job job = layout.jobs()[i];
      std::byte* const to = (job.on_device ? base : arena) + job.offset;
      job.to->view.data = to;
      if (options.is_outline) continue;
      if (job.is_turned && !turned) turned = down_rows.make(model.weights().layers[layer].ffn_down.view);
      if (job.is_turned) job.from.data = turned->data();
      gather(device, pool, staging, job, to);
    }
    if (options.is_outline) continue;
    for (size_t i = first; i < next; ++i) {
      const Job& job = layout.jobs()[i];
      if (job.is_turned) continue;
      model.file().drop_pages(job.units ? job.from : rows_of(job.from, job.first, job.n_rows));
    }
  }
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  down_rows.report(options.log);
}

}  // namespace hotset
