// Block gemms whose integer products are AMX tile multiplications; everything else is that of AVX-512: panels (which
// have the layout of tiles as they are), scaling, loops. Written over `Tiles`, the handful of tile instructions:
// cpu/block_amx.cpp has the real ones, tests/cpp/emulated_tiles.cpp plain code for machines without AMX. Private to
// both.
//
// A block has its own scales, so only its 32 products may meet in integers, and a multiplication uses half of the depth
// that a tile could have:
//
//   C (activations x 16 rows, int32) = A (activations x 32 int8) * B (8 k-groups x 16 rows x 4 uint8)
//
// A panel of 32 rows takes two C and two B. Q6_K multiplies the halves of a block apart: 16 int8, 4 k-groups.
#pragma once

#include "cpu/block_k_avx512_gemm.h"

namespace hotset::cpu {
namespace {

// The operand of LDTILECFG: bytes per row and rows of each tile.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t n_rows, int64_t n_row_bytes) {
    rows[tile] = static_cast<uint8_t>(n_rows);
    row_bytes[tile] = static_cast<uint16_t>(n_row_bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

// Rows of A and C: activations multiplied at once.
constexpr int kTileActs = 16;

// What each of the eight tiles is for. C is two tiles, and so is B. The last activations of a call, fewer than
// kTileActs, have their own A and C, so that one configuration serves the whole call.
template <int N>
struct TileOf {
  static constexpr int kC = N == kTileActs ? 0 : 3;
  static constexpr int kA = N == kTileActs ? 2 : 5;
  static constexpr int kB = 6;
};

// Tiles of a gemm of n_acts activations whose multiplications are n_groups k-groups deep.
inline TileConfig tile_config(int64_t n_acts, int n_groups) {
  TileConfig config;
  const int64_t n_last = n_acts % kTileActs;
  const auto set_acts = [&](int c, int a, int64_t n) {
    for (int half = 0; half < 2; ++half) config.set(c + half, n, 64);
    config.set(a, n, 4 * n_groups);
  };
  set_acts(TileOf<kTileActs>::kC, TileOf<kTileActs>::kA, kTileActs);
  if (n_last > 0) set_acts(TileOf<1>::kC, TileOf<1>::kA, n_last);
  for (int half = 0; half < 2; ++half) config.set(TileOf<1>::kB + half, n_groups, 64);
  return config;
}

// C += A * B of one half of the panel's rows, from 0 on, written to every second vector of s.
template <class Tiles, int N, int kHalf>
inline void half_products(const std::byte* groups, __m512i* s) {
  constexpr int kC = TileOf<N>::kC + kHalf, kB = TileOf<N>::kB + kHalf;
  Tiles::template load<kB>(groups + 64 * kHalf, 128);
  Tiles::template zero<kC>();
  Tiles::template add_signed_by_unsigned<kC, TileOf<N>::kA, kB>();
  Tiles::template store<kC>(s + kHalf, 128);
}

// Products of k-groups from `first` on, as many as the tiles are deep: s[2 a], s[2 a + 1] become those of rows 0..15
// and 16..31 with activation a.
template <class Tiles, int N>
inline void tile_products(const std::byte* record, const int8_t (*q)[kBlock], int first, __m512i* s) {
  Tiles::template load<TileOf<N>::kA>(q[0] + 4 * first, kBlock);
  half_products<Tiles, N, 0>(record + 128 * first, s);
  half_products<Tiles, N, 1>(record + 128 * first, s);
}

// Float of products of activation a, its start added.
inline __m512 started(const __m512i* s, const int32_t* start, int a, int half) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(s[2 * a + half], _mm512_set1_epi32(start[a])));
}

template <class Tiles>
struct Amx : Avx512 {
  static constexpr int kTile = kTileActs;
  static constexpr int kMaxActs = 128;
  template <class Format>
  static constexpr int kGroups = 8;
  template <class Format>
  using Record = ActRecord<kTile, Format::kOffset>;
  static constexpr size_t kMaxActRecordBytes = kTile * (kBlock + 8);

  template <class Format, int N>
  static void multiply(const std::byte* record, const Record<Format>& act, __m512* sums) {
    __m512i s[2 * kTile];
    tile_products<Tiles, N>(record, act.q, 0, s);
    add_block<N>(record, act, [&](int a, int half) { return started(s, act.start, a, half); }, sums);
  }
};

template <class Tiles>
struct AmxK : Avx512K {
  static constexpr int kTile = kTileActs;
  static constexpr int kMaxActs = 128;
  template <class Format>
  static constexpr int kGroups = Format::kType == kWeightQ6_K ? 4 : 8;
  template <class Format>
  using Record = KActRecord<Format, kTile>;
  static constexpr size_t kMaxActRecordBytes = sizeof(Record<Q6K>);

  template <class Format, int N>
  static void multiply(const std::byte* record, const Record<Format>& act, __m512* sums) {
    __m512i s[2 * kTile];
    tile_products<Tiles, N>(record, act.q, 0, s);
    if constexpr (Format::kType == kWeightQ6_K) {
      __m512i high[2 * kTile];  // of the block's second 16 elements, s of the first
      tile_products<Tiles, N>(record, act.q, 4, high);
      const __m512 c0[2] = {load(record, 1, 0), load(record, 1, 1)}, c1[2] = {load(record, 2, 0), load(record, 2, 1)};
      const auto sum = [&](int a, int half) {
        const __m512 low_sum = started(s, act.start[0], a, half), high_sum = started(high, act.start[1], a, half);
        return _mm512_fmadd_ps(c1[half], high_sum, _mm512_mul_ps(c0[half], low_sum));
      };
      add_halves<N>(record, act, sum, sums);
    } else {
      add_minimum<N>(record, act, [&](int a, int half) { return _mm512_cvtepi32_ps(s[2 * a + half]); }, sums);
    }
  }
};

// Tiles are configured for one call: outside of it they are in their initial state, which the operating system need not
// save, and no call sees another's shapes.
template <class Tiles, class Isa, class Format>
void amx_gemm(const GemmArgs& args) {
  Tiles::configure(tile_config(args.n_acts, Isa::template kGroups<Format>));
  BlockGemm<Isa>::template run<Format>(args);
  Tiles::release();
}

// The gemms of all block types, and their scratch.
template <class Tiles>
void fill_gemms(Kernels& table) {
  table.gemm[kWeightQ8_0] = amx_gemm<Tiles, Amx<Tiles>, Q8>;
  table.gemm[kWeightQ4_0] = amx_gemm<Tiles, Amx<Tiles>, Q4>;
  table.gemm[kWeightQ4_K] = amx_gemm<Tiles, AmxK<Tiles>, Q4K>;
  table.gemm[kWeightQ5_K] = amx_gemm<Tiles, AmxK<Tiles>, Q5K>;
  table.gemm[kWeightQ6_K] = amx_gemm<Tiles, AmxK<Tiles>, Q6K>;
  static_assert(AmxK<Tiles>::kRecordBytes >= Amx<Tiles>::kRecordBytes &&
                AmxK<Tiles>::kMaxActRecordBytes >= Amx<Tiles>::kMaxActRecordBytes);  // one size serves all types
  table.gemm_scratch_bytes = BlockGemm<AmxK<Tiles>>::scratch_bytes;
}

}  // namespace
}  // namespace hotset::cpu
