// Dots of bit planes in plain C++ for any CPU.
#include "cpu/canonical.h"
#include "cpu/kernels_fill.h"
#include "cpu/plane_dots.h"

namespace hotset::cpu {
namespace {

// The 32 codes of a block.
template <int kBits>
inline void unpack(const std::byte* row, int64_t block, uint8_t* codes) {
  constexpr int64_t kBlocks = kPlaneGroup / kBlock;
  const int64_t at = block % kBlocks;
  const uint8_t* group = reinterpret_cast<const uint8_t*>(row) + block / kBlocks * plane_group_bytes(kBits);
  for (int i = 0; i < kBlock; ++i) codes[i] = 0;
  if constexpr (kBits > 1) {
    const uint8_t* low = group + at % 2 * kBlock;
    for (int i = 0; i < kBlock; ++i) codes[i] = low[i] >> (at / 2 * 2) & 3;
  }
  if constexpr (kBits != 2) {
    const uint8_t* bits = group + (kBits == 3 ? 64 : 0) + at * 4;
    for (int i = 0; i < kBlock; ++i) codes[i] |= static_cast<uint8_t>((bits[i / 8] >> (i % 8) & 1) << (kBits - 1));
  }
}

struct Generic {
  template <int kBits, int kRows, int kActs>
  static void dot(const PlaneTile& tile) {
    for (int r = 0; r < kRows; ++r)
      dot_row<kBits, kActs>(tile.rows + static_cast<size_t>(r) * tile.stride, tile, tile.out + r);
  }

  template <int kBits, int kActs>
  static void dot_row(const std::byte* row, const PlaneTile& tile, float* out) {
    float lane[kActs][kLanes] = {};
    for (int64_t block = 0; block < tile.n_blocks; ++block) {
      uint8_t codes[kBlock];
      unpack<kBits>(row, block, codes);
      for (int a = 0; a < kActs; ++a) {
        const int8_t* q = tile.acts[a].q + block * kBlock;
        float* lanes = lane[a] + block % 2 * 8;
        for (int i = 0; i < 8; ++i) {
          int32_t sum = 0;
          for (int j = 4 * i; j < 4 * i + 4; ++j) sum += codes[j] * q[j];
          lanes[i] = fma1(tile.acts[a].scale[block], static_cast<float>(sum), lanes[i]);
        }
      }
    }
    for (int a = 0; a < kActs; ++a) out[a * tile.out_stride] = reduce_lanes(lane[a]);
  }
};

}  // namespace

void fill_plane_generic(Kernels& table) { fill_plane_dots<Generic>(table); }

}  // namespace hotset::cpu
