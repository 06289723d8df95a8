// Whether and when an engine with an accelerator brings cold units' rows to it instead of computing them on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/machine_rates.h"
#include "core/placed_weights.h"

namespace hotset {

struct StreamChoice {
  int64_t from_rows = 0;   // steps of at least so many rows had better stream; 0 = none
  size_t place_bytes = 0;  // of StreamRing
};

struct StreamCosts {
  const MachineRates& rates;   // complete: CPU, bus and hand-off
  int32_t n_threads = 1;       // of the host
  uint64_t budget = 0;         // device memory, of which the ring takes a small share
  bool exact = false;          // the host computes active units alone
  // (n_layer) of the units in slot order; empty = every unit counts as active.
  const std::vector<std::vector<double>>& frequencies;
};

// The host reads every cold row that is active in a row of the step, and multiplies each by each row of it; streaming
// takes the bus's time for all of them, whatever the number of rows, and a hand-off a chunk. What the device does
// meanwhile is not counted: a card multiplies faster than rows come. from_rows is where the two are equal.
StreamChoice choose_stream(const PlacedWeights& weights, const StreamCosts& costs);

// A StreamRing::place_bytes near `wanted` with which every layer can be streamed.
size_t stream_place_bytes(const PlacedWeights& weights, uint64_t wanted);

}  // namespace hotset
