// Small closed choices that models are made of, shared by operations and model descriptions.
#pragma once

#include <cstdint>

namespace hotset {

enum class NormKind { kRms };
enum class Activation { kSilu, kRelu };
enum class RopeLayout { kInterleaved, kHalfSplit };  // GGUF "NORM" and "NEOX"

}  // namespace hotset
