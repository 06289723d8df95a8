// Lets units of a layer change places between a device's memory and the host's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/adaptation.h"
#include "core/device.h"
#include "core/placed_weights.h"

namespace hotset {

// What it takes to swap two units of a layer.
struct SwapCost {
  int64_t n_copies = 0;                   // to the device and back
  uint64_t to_device = 0, to_host = 0;  // bytes
};

// A unit's rows are those of ffn_up, ffn_down_t and, where there is one, ffn_gate, with its elements of their biases.
// The layers' tensors stay where they are; of two slots what they hold is exchanged. So nobody who looks into a layer by
// slot has to know, but who speaks of units has to ask which one a slot holds (Adaptation::unit_of_slot).
class UnitExchange {
 public:
  // Of layers whose host's rows may be written (WeightPlacer::can_exchange), at most max_swaps at a time. The weights
  // and the device outlive this. Takes staging_bytes() of shared memory.
  UnitExchange(const PlacedWeights& weights, Device& device, int64_t max_swaps);

  static uint64_t staging_bytes(const PlacedWeights& weights, int64_t max_swaps);
  static SwapCost cost(const PlacedLayer& layer);

  // Done on return. Not while a step runs. When this throws, units of the layer may be mixed up: no step may follow.
  void exchange(size_t layer, std::span<const SlotSwap> swaps);

 private:
  const PlacedWeights& weights_;
  Device& device_;
  const int64_t max_swaps_;
  std::unique_ptr<DeviceMemory> staging_;
};

}  // namespace hotset
