// Dots of bit planes for AVX2: a block of 32 codes is one register, its 8 sums are 8 lanes.
#include "cpu/block_avx2_vec.h"
#include "cpu/kernels_fill.h"
#include "cpu/plane_dots.h"

namespace hotset::cpu {
namespace {

// A byte of value kValue for each bit of 4 bytes that is set.
template <int kValue>
inline __m256i spread_bits(const std::byte* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  const __m256i bytes = _mm256_shuffle_epi8(
      _mm256_set1_epi32(word), _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), _mm256_set1_epi8(kValue));
}

// Block kAt of a group.
template <int kBits, int kAt>
inline __m256i codes_of(const std::byte* group) {
  if constexpr (kBits == 1) return spread_bits<1>(group + 4 * kAt);
  const __m256i both = _mm256_srli_epi16(load256(group + kAt % 2 * 32), kAt / 2 * 2);
  const __m256i low = _mm256_and_si256(both, _mm256_set1_epi8(3));
  if constexpr (kBits == 2) return low;
  return _mm256_or_si256(low, spread_bits<4>(group + 64 + 4 * kAt));
}

template <int kBits, int kRows, int kActs, int kAt>
inline void add_block(const PlaneTile& tile, const std::byte* group, int64_t block, __m256 (*acc)[kActs][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i codes[kRows];
  for (int r = 0; r < kRows; ++r) codes[r] = codes_of<kBits, kAt>(group + static_cast<size_t>(r) * tile.stride);
  for (int a = 0; a < kActs; ++a) {
    const __m256i q = load256(tile.acts[a].q + block * kBlock);
    const __m256 scale = _mm256_set1_ps(tile.acts[a].scale[block]);
    for (int r = 0; r < kRows; ++r) {
      const __m256 sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(codes[r], q), ones));
      acc[r][a][kAt % 2] = _mm256_fmadd_ps(scale, sums, acc[r][a][kAt % 2]);
    }
  }
}

struct Avx2 {
  template <int kBits, int kRows, int kActs>
  static void dot(const PlaneTile& tile) {
    constexpr int64_t kBlocks = kPlaneGroup / kBlock;
    __m256 acc[kRows][kActs][2];
    for (int r = 0; r < kRows; ++r)
      for (int a = 0; a < kActs; ++a) acc[r][a][0] = acc[r][a][1] = _mm256_setzero_ps();
    const std::byte* group = tile.rows;
    const std::byte* coming = tile.coming;
    for (int64_t block = 0; block < tile.n_blocks; block += kBlocks, group += plane_group_bytes(kBits)) {
      if constexpr (kRows > 1) coming = prefetch_once(coming, kRows * plane_group_bytes(kBits));
      const int64_t n = tile.n_blocks - block;
      add_block<kBits, kRows, kActs, 0>(tile, group, block, acc);
      if (n > 1) add_block<kBits, kRows, kActs, 1>(tile, group, block + 1, acc);
      if (n > 2) add_block<kBits, kRows, kActs, 2>(tile, group, block + 2, acc);
      if (n > 3) add_block<kBits, kRows, kActs, 3>(tile, group, block + 3, acc);
      if (n > 4) add_block<kBits, kRows, kActs, 4>(tile, group, block + 4, acc);
      if (n > 5) add_block<kBits, kRows, kActs, 5>(tile, group, block + 5, acc);
      if (n > 6) add_block<kBits, kRows, kActs, 6>(tile, group, block + 6, acc);
      if (n > 7) add_block<kBits, kRows, kActs, 7>(tile, group, block + 7, acc);
    }
    for (int r = 0; r < kRows; ++r)
      for (int a = 0; a < kActs; ++a) tile.out[a * tile.out_stride + r] = reduce_lanes(acc[r][a][0], acc[r][a][1]);
  }
};

}  // namespace

void fill_plane_avx2(Kernels& table) { fill_plane_dots<Avx2>(table); }

}  // namespace hotset::cpu
