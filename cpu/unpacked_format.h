// The formats of core/unpacked_block.h as weight types. Private to cpu/.
#pragma once

#include "core/unpacked_block.h"
#include "cpu/block_format.h"

namespace hotset::cpu {
namespace {

// Calls f<type, Format>() for each of them.
template <class F>
inline void for_unpacked_formats(F f) {
  f.template operator()<kWeightQ2_K, block_format::Q2_K>();
  f.template operator()<kWeightQ3_K, block_format::Q3_K>();
  f.template operator()<kWeightIQ4_XS, block_format::IQ4_XS>();
  f.template operator()<kWeightQ4_1, block_format::Q4_1>();
  f.template operator()<kWeightQ5_0, block_format::Q5_0>();
  f.template operator()<kWeightQ5_1, block_format::Q5_1>();
  f.template operator()<kWeightIQ4_NL, block_format::IQ4_NL>();
  f.template operator()<kWeightMXFP4, block_format::MXFP4>();
}

constexpr bool has_minimum(WeightType type) {
  return type == kWeightQ4_K || type == kWeightQ5_K || type == kWeightQ2_K || type == kWeightQ4_1 ||
         type == kWeightQ5_1;
}

// Whether the halves of a block have scales of their own.
constexpr bool has_halves(WeightType type) {
  return type == kWeightQ6_K || type == kWeightQ2_K || type == kWeightQ3_K;
}

// Scale of activations where a row has no block: with it a block adds -0 to its lane, which changes none.
constexpr float kMissing = -0.0f;

// Block b of a row.
template <class Format>
inline void unpack_block(Format, const std::byte* row, int64_t b, UnpackedBlock& out) {
  unpack<Format>(row + b / Format::kBlocks * Format::kBytes, static_cast<int>(b % Format::kBlocks), out);
}

}  // namespace
}  // namespace hotset::cpu
