// The tensors of a made-up model: names, shapes, types, and how each is filled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/architecture.h"
#include "core/quantize_mixture.h"
#include "core/synth.h"
#include "core/synth_firing.h"
#include "core/tensor.h"

namespace hotset {

// Directions, A, s and z as in synth_firing.h.
enum class Fill {
  kConstant,    // every element is `scale`
  kRandom,      // mean 0, deviation `scale`
  kOrthogonal,  // the same without its part along d
  kEmbedding,   // the same with A d instead
  kDetect,      // kOrthogonal rows, each with the part along d that its unit's z asks for
  kTransposed,  // element (i, j) is element (j, i) of a kRandom matrix
};

struct SynthTensor {
  std::string name;
  Shape shape;
  DType dtype;
  Fill fill;
  float scale;
  uint64_t key = 0;     // of its random numbers
  int64_t layer = -1;   // kDetect
  float deviation = 0;  // kDetect: s of its layer
};

// A specification that was checked, with what follows from it.
struct SynthModel {
  SynthSpec spec;  // no zeros left in the shape; skew_share in effect
  const Architecture* arch = nullptr;
  Activation activation = Activation::kSilu;
  const Mixture* mixture = nullptr;
  FiringLaw law;
  std::vector<SynthTensor> tensors;
  uint64_t n_bytes = 0;  // of all tensors

  std::string name() const;
};

// Throws std::invalid_argument, see plan_synth.
SynthModel resolve_synth(const SynthSpec& spec);

}  // namespace hotset
