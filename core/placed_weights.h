// The weights of a model that two devices share: which tensors and units each of them has.
#pragma once

#include <cstdint>
#include <vector>

#include "core/placement.h"
#include "core/weights.h"

namespace hotset {

// One layer. Its tensors have the file's names; those that a side lacks have no view. attn_*, ffn_norm, their biases and
// ffn_down_b are on the side of the attention. Units are rows (ffn_down_t) in slot order, the hot ones on the device,
// the others on the host: of ffn_up and ffn_down_t each side has the rows of its units. The detect matrix (ffn_gate, or
// ffn_up without a gate) is whole on the device with DetectPlace::kDevice, else each side has its units' rows.
// ffn_gate_b and ffn_up_b are cut as their matrices.
struct PlacedLayer {
  LayerPlacement place;
  int64_t n_units = 0;
  LayerWeights device, host;
};

struct PlacedWeights {
  std::vector<PlacedLayer> layers;
  Place head = Place::kHost;
  NamedTensor token_embd, position_embd;           // on the host
  NamedTensor output_norm, output_norm_b, output;  // on the head's side
  NamedTensor rope_freqs;                          // host memory, read by the planner only
};

}  // namespace hotset
