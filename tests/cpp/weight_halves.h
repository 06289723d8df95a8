// Where the f16 numbers of a block or super-block are.
#pragma once

#include <vector>

#include "cpu/kernels.h"

inline std::vector<size_t> halves_of(hotset::cpu::WeightType type) {
  using namespace hotset::cpu;
  switch (type) {
    case kWeightQ6_K: return {208};
    case kWeightQ2_K: return {80, 82};
    case kWeightQ3_K: return {108};
    case kWeightMXFP4: return {};
    case kWeightQ4_K:
    case kWeightQ5_K:
    case kWeightQ4_1:
    case kWeightQ5_1: return {0, 2};
    default: return {0};
  }
}
