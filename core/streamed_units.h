// Cold units cut into chunks that the device computes where prompts are long: their rows come from host memory, through
// two places on the device that take turns, while the units before them are computed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/placed_weights.h"

namespace hotset {

// Device memory that rows are brought to: kPlaces pieces of place_bytes, one after the other.
struct StreamRing {
  static constexpr int64_t kPlaces = 2;
  static constexpr size_t kAlignment = 256;  // of tensors in it

  std::byte* data = nullptr;
  size_t place_bytes = 0;  // a multiple of kAlignment

  size_t size_bytes() const { return static_cast<size_t>(kPlaces) * place_bytes; }
};

// Units of a layer as rows that the device can read: ffn_gate and its bias where there is a gate, ffn_up and its bias,
// ffn_down_t, of n units each.
struct UnitRows {
  NamedTensor gate, gate_bias, up, up_bias, down_t;
  int64_t n = 0;
};

struct StreamedChunk {
  struct Move {
    NamedTensor from, to;  // in host memory, in the ring
  };
  UnitRows rows;
  std::vector<Move> moves;  // what has to be brought first
};

// The layer's cold units, in slot order. Chunk i of them has the place (first_place + i) % kPlaces. Rows of the detect
// matrix that are on the device are used where they lie.
std::vector<StreamedChunk> stream_units(const PlacedLayer& layer, const StreamRing& ring, int64_t first_place);

// The least place_bytes with which a chunk of this layer has a unit; and with which it has all of them.
size_t least_place_bytes(const PlacedLayer& layer);
size_t most_place_bytes(const PlacedLayer& layer);

}  // namespace hotset
