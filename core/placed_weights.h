// The weights of a model that two devices share: which tensors and units each of them has.
#pragma once

#include <cstdint>
#include <vector>

#include "core/placement.h"
#include "core/predictor.h"
#include "core/weights.h"

namespace hotset {

struct ModelConfig;

// One layer. Its tensors have the file's names; those that a side lacks have no view. What kBesideUnits lists is on the
// side of the attention. Units are rows (ffn_down_t) in slot order, the hot ones on the
// device, the others on the host: of ffn_up and ffn_down_t each side has the rows of its units. The detect matrix
// (ffn_gate, or ffn_up without a gate) is whole on the device with DetectPlace::kDevice, else each side has its units'
// rows. ffn_gate_b and ffn_up_b are cut as their matrices. A predictor's rows lie where the detect rows of their units
// do, or (LayerPlacement::device_predicts) all on the device; what all units need of it is on each side that has rows.
// With planes device_predictor.bias is the detect matrix's where the device has more rows of the predictor than of
// that.
struct PlacedLayer {
  LayerPlacement place;
  int64_t n_units = 0;
  LayerWeights device, host;
  Predictor::Layer device_predictor{}, host_predictor{};  // nothing on sides without rows, or without a predictor
  NamedTensor unit_of_slot{};                             // (n_units) I32 in host memory; none where slots are units
};

struct PlacedWeights {
  std::vector<PlacedLayer> layers;
  Place head = Place::kHost;
  NamedTensor token_embd, token_embd_proj, position_embd;  // on the host
  HeadWeights head_weights;                                // on the head's side
  NamedTensor rope_freqs;                          // host memory, read by the planner only
};

// The first n rows of a matrix, or values of an F32 vector, where there is one.
NamedTensor first_rows(NamedTensor matrix, int64_t n);
NamedTensor first_values(NamedTensor vector, int64_t n);

// Throws Error unless what is placed is what a plan reads, exact or dense; shapes are left to lint.
void check_placed(const PlacedWeights& weights, const ModelConfig& config, bool exact);

// Bytes of the model's tensors that the host has, wherever they lie; without the last norm, and predictors.
uint64_t host_bytes(const PlacedWeights& weights);

}  // namespace hotset
