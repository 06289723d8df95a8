// Dots of bit planes for AVX-512 (F, BW, DQ, VL, VNNI): two blocks of 32 codes are one register, their 16 sums 16 lanes.
// A group of 256 weights of 2 bits is 64 bytes and some 28 instructions: fast enough to be bound by memory.
#include "cpu/block_avx512_vec.h"
#include "cpu/kernels_fill.h"
#include "cpu/plane_dots.h"

namespace hotset::cpu {
namespace {

// Blocks 2 kPair and 2 kPair + 1 of a group.
template <int kBits, int kPair>
inline __m512i codes_of(const std::byte* group) {
  __m512i codes = _mm512_setzero_si512();
  if constexpr (kBits > 1)
    codes = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(group), 2 * kPair), _mm512_set1_epi8(3));
  if constexpr (kBits == 2) return codes;
  uint64_t bits;
  std::memcpy(&bits, group + (kBits == 3 ? 64 : 0) + 8 * kPair, sizeof bits);
  return _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(1 << (kBits - 1)));
}

// What there is of a group's 8 blocks; all of them where kTail = false.
template <bool kTail>
struct PlaneExtent {
  int64_t n;  // blocks, 1..8

  __m512i q(const int8_t* at, int64_t pair) const {
    if constexpr (!kTail) return _mm512_loadu_si512(at);
    const int64_t left = n - 2 * pair;
    return _mm512_maskz_loadu_epi8(left <= 0 ? 0 : left == 1 ? 0xffffffffu : ~uint64_t{0}, at);
  }
  __m512 scales(const float* at) const {
    if constexpr (!kTail) return _mm512_castps256_ps512(_mm256_loadu_ps(at));
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), at);
  }
};

// Lanes 0..7 take the scale of block 2 kPair, the others that of the next block.
template <int kPair>
inline __m512 pair_of(__m512 scales) {
  constexpr int a = 2 * kPair, b = a + 1;
  return _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b), scales);
}

template <int kBits, int kRows, int kActs, int kPair, bool kTail>
inline void add_pair(const PlaneTile& tile, const std::byte* group, int64_t block, PlaneExtent<kTail> extent,
                     const __m512* scales, __m512 (*acc)[kActs]) {
  __m512i codes[kRows];
  for (int r = 0; r < kRows; ++r) codes[r] = codes_of<kBits, kPair>(group + static_cast<size_t>(r) * tile.stride);
  for (int a = 0; a < kActs; ++a) {
    const __m512i q = extent.q(tile.acts[a].q + (block + 2 * kPair) * kBlock, kPair);
    const __m512 scale = pair_of<kPair>(scales[a]);
    for (int r = 0; r < kRows; ++r) {
      const __m512 sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[r], q));
      acc[r][a] = _mm512_fmadd_ps(scale, sums, acc[r][a]);
    }
  }
}

template <int kBits, int kRows, int kActs, bool kTail>
inline void add_group(const PlaneTile& tile, const std::byte* group, int64_t block, PlaneExtent<kTail> extent,
                      __m512 (*acc)[kActs]) {
  __m512 scales[kActs];
  for (int a = 0; a < kActs; ++a) scales[a] = extent.scales(tile.acts[a].scale + block);
  add_pair<kBits, kRows, kActs, 0>(tile, group, block, extent, scales, acc);
  add_pair<kBits, kRows, kActs, 1>(tile, group, block, extent, scales, acc);
  add_pair<kBits, kRows, kActs, 2>(tile, group, block, extent, scales, acc);
  add_pair<kBits, kRows, kActs, 3>(tile, group, block, extent, scales, acc);
}

struct Avx512 {
  template <int kBits, int kRows, int kActs>
  static void dot(const PlaneTile& tile) {
    constexpr int64_t kBlocks = kPlaneGroup / kBlock;
    __m512 acc[kRows][kActs];
    for (int r = 0; r < kRows; ++r)
      for (int a = 0; a < kActs; ++a) acc[r][a] = _mm512_setzero_ps();
    const std::byte* group = tile.rows;
    const std::byte* coming = tile.coming;
    int64_t block = 0;
    for (; block + kBlocks <= tile.n_blocks; block += kBlocks, group += plane_group_bytes(kBits)) {
      if constexpr (kRows > 1) coming = prefetch_once(coming, kRows * plane_group_bytes(kBits));
      add_group<kBits, kRows, kActs>(tile, group, block, PlaneExtent<false>{kBlocks}, acc);
    }
    if (block < tile.n_blocks)
      add_group<kBits, kRows, kActs>(tile, group, block, PlaneExtent<true>{tile.n_blocks - block}, acc);
    for (int r = 0; r < kRows; ++r)
      for (int a = 0; a < kActs; ++a) tile.out[a * tile.out_stride + r] = reduce_lanes(acc[r][a]);
  }
};

}  // namespace

void fill_plane_avx512(Kernels& table) { fill_plane_dots<Avx512>(table); }

}  // namespace hotset::cpu
