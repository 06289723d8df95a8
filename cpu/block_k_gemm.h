// The activations' side of a K-type gemm (see cpu/block_gemm.h). Private to cpu/block_k_*_gemm.h.
#pragma once

#include "cpu/block_gemm.h"
#include "cpu/block_k_format.h"

namespace hotset::cpu {
namespace {

// Q4_K, Q5_K: `scaled_sum` = scale * sum(q), which the minimum multiplies.
template <class Format, int kTile>
struct KActRecord {
  int8_t q[kTile][kBlock];
  float scale[kTile];
  float scaled_sum[kTile];

  void set(int a, const ActivationRow& act, int64_t block) {
    std::memcpy(q[a], act.q + block * kBlock, kBlock);
    scale[a] = act.scale[block];
    scaled_sum[a] = act.scale[block] * static_cast<float>(act.sum[block]);
  }
};

// Q6_K: what the integer sums of the two halves of the block start from, which makes up for unsigned weights.
template <int kTile>
struct KActRecord<Q6K, kTile> {
  int8_t q[kTile][kBlock];
  float scale[kTile];
  int32_t start[2][kTile];

  void set(int a, const ActivationRow& act, int64_t block) {
    const int8_t* from = act.q + block * kBlock;
    std::memcpy(q[a], from, kBlock);
    scale[a] = act.scale[block];
    int32_t sum = 0;
    for (int64_t i = 0; i < kBlock / 2; ++i) sum += from[i];
    start[0][a] = -Q6K::kOffset * sum;
    start[1][a] = -Q6K::kOffset * (act.sum[block] - sum);
  }
};

}  // namespace
}  // namespace hotset::cpu
