// Brings a model's weights to where a placement wants them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/device.h"
#include "core/log.h"
#include "core/model.h"
#include "core/placed_weights.h"
#include "core/relayout.h"

namespace hotset {

// Owns what PlacedWeights view: one piece of device memory with everything that the device has, and arenas with the cold
// units' rows in slot order. Tensors that the host has as the file has them (attention, embeddings, a file in slot order
// already) stay views of the mapping. File pages that were copied from are dropped as it goes.
class WeightPlacer {
 public:
  // Where tensors begin in device memory: what GPUs read at once.
  static constexpr uint64_t kAlignment = 256;

  struct Options {
    int32_t n_threads = 1;
    bool is_outline = false;  // sizes and views only: nothing is allocated, copied or to be read
    // Cold units of layers that have hot ones, too, are copied even where slots are units, so that they can be exchanged.
    bool copies_cold = false;
    LogSink log{};
    const Predictor* predictor = nullptr;  // with its rows in order of the same slots; none: nothing is predicted
  };
  // `rows`: the model's weights with ffn_down_t in every layer, in outline: down projections of a standard file are turned
  // here, a layer at a time, so that they are never in memory twice. units_by_slot: (n_layer) permutations, the unit of each
  // slot, or empty where slots are units. The model, the order, the predictor and the device outlive this.
  // Throws OutOfMemoryError before anything is copied when the device has too little memory.
  WeightPlacer(const Model& model, std::shared_ptr<const Relayout> rows, const Placement& placement,
               const std::vector<std::vector<int32_t>>& units_by_slot, Device& device, const Options& options);
  ~WeightPlacer();

  const PlacedWeights& weights() const { return placed_; }
  uint64_t device_bytes() const { return device_bytes_; }  // exact, as allocated
  uint64_t arena_bytes() const { return arena_bytes_; }    // of cold units copied in host memory
  double seconds() const { return seconds_; }              // that copying took
  // Whether the layer has hot units, and cold ones in memory that may be written (core/unit_exchange.h).
  bool can_exchange(size_t layer) const { return can_exchange_[layer]; }

 private:
  class Layout;
  void copy(const Model& model, Device& device, const Options& options, const Layout& layout);

  PlacedWeights placed_;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<Arena> arenas_;
  std::vector<bool> can_exchange_;  // (n_layer)
  uint64_t device_bytes_ = 0, arena_bytes_ = 0;
  double seconds_ = 0;
};

}  // namespace hotset
