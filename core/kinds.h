// Small closed choices that models are made of, shared by operations and model descriptions.
#pragma once

#include <cstdint>

namespace hotset {

enum class NormKind { kRms, kLayer };
// What a unit makes of its products: act(gate) * up where there is a gate, else act(up).
enum class Activation {
  kSilu,
  kRelu,
  kRelu2,  // max(x, 0)^2
  kDRelu,  // max(gate, 0) * max(up, 0), gated only
  kFatRelu,   // x > threshold ? x : 0. Biases of detect rows have the threshold taken off, so that here too units with
              // x' = x - threshold <= 0 are inactive, and what passes is x' + threshold
  kGelu,      // x * Phi(x), with the normal distribution
  kGeluTanh,  // x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
};
// Whether a unit's output is exactly zero for part of its inputs, so that it can be skipped without loss.
inline bool is_sparse(Activation activation) {
  return activation != Activation::kSilu && activation != Activation::kGelu && activation != Activation::kGeluTanh;
}

// What a unit list holds: units that a predictor proposes, or those that fire. Only the latter are counted, together
// with the units that they were chosen from.
enum class UnitSet { kCandidates, kActive };
enum class Positions { kRope, kLearned };            // rotated queries and keys, or a table added to the embedding
enum class RopeLayout { kInterleaved, kHalfSplit };  // GGUF "NORM" and "NEOX"

}  // namespace hotset
