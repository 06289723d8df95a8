// The K types as the float kernels see them. Layouts: cpu/block_k_format.h. Needs a float_vec_*.h.
#pragma once

#include "cpu/float_k_bits.h"
#include "cpu/float_weights.h"

namespace hotset::cpu {
namespace {

// `offset` is where element k would start if a super-block's bytes were spread evenly: for prefetches.
struct WeightQ4_K {
  static constexpr int64_t kBytes = 144;
  static constexpr int64_t offset(int64_t k) { return k * kBytes / kSuperBlock; }
};

struct WeightQ5_K {
  static constexpr int64_t kBytes = 176;
  static constexpr int64_t offset(int64_t k) { return k * kBytes / kSuperBlock; }
};

struct WeightQ6_K {
  static constexpr int64_t kBytes = 210;
  static constexpr int64_t offset(int64_t k) { return k * kBytes / kSuperBlock; }
};

template <>
constexpr bool kHasTail<WeightQ4_K> = false;
template <>
constexpr bool kHasTail<WeightQ5_K> = false;
template <>
constexpr bool kHasTail<WeightQ6_K> = false;

struct SuperBlockReader {
  static constexpr bool kSuperBlocks = true;
  static constexpr int64_t n_blocks(int64_t k) { return kSuperBlock / kBlock - block_of(k); }
  // Unsigned, so that divisions are shifts.
  static constexpr int64_t super_of(int64_t k) { return static_cast<int64_t>(static_cast<uint64_t>(k) / kSuperBlock); }
  static constexpr unsigned block_of(int64_t k) {
    return static_cast<unsigned>(static_cast<uint64_t>(k) % kSuperBlock / kBlock);
  }
};

// Blocks of Q4_K and Q5_K: fma(d * scale, q, -(dmin * minimum)).
template <class T>
struct MinimumReader : SuperBlockReader {
  void open(const std::byte* row, int64_t k) {
    super = row + super_of(k) * T::kBytes;
    const Dwords packed = k_scale_bytes(super);
    std::byte bytes[16];
    std::memcpy(bytes, &packed, sizeof bytes);
    const Vec d = splat_half(super), minus_dmin = mul(splat(-1.0f), splat_half(super + 2));
    for (int v = 0; v < 16 / kWidth; ++v) {  // both times all 16, of which 8 are used
      const Vec integers = load_i8(bytes + v * kWidth);
      store(scales + v * kWidth, mul(d, integers));
      store(minima + v * kWidth, mul(minus_dmin, integers));
    }
  }

  void load(int64_t k, Vec* out) const {
    const unsigned block = block_of(k);
    const std::byte* nibbles = super + T::kBytes - 128 + block / 2 * kBlock;
    const Vec scale = splat(scales[block]), minimum = splat(minima[8 + block]);
    for (int half = 0; half < 2; ++half) {
      Vec* to = out + half * kBlockVecs / 2;
      if constexpr (T::kBytes == WeightQ5_K::kBytes)
        load_5_bits(nibbles + 16 * half, block % 2 * 4, super + 16 + 16 * half, block, scale, minimum, to);
      else
        load_4_bits(nibbles + 16 * half, block % 2 * 4, scale, minimum, to);
    }
  }

  const std::byte* super;
  alignas(64) float scales[16];  // of block b at b
  alignas(64) float minima[16];  // of block b, negated, at 8 + b
};

template <>
struct BlockReader<WeightQ4_K> : MinimumReader<WeightQ4_K> {};
template <>
struct BlockReader<WeightQ5_K> : MinimumReader<WeightQ5_K> {};

// Blocks of Q6_K: d * scale * (q - 32), exact.
template <>
struct BlockReader<WeightQ6_K> : SuperBlockReader {
  void open(const std::byte* row, int64_t k) {
    super = row + super_of(k) * WeightQ6_K::kBytes;
    const Vec d = splat_half(super + 208);
    for (int v = 0; v < 16 / kWidth; ++v) store(scales + v * kWidth, mul(d, load_i8(super + 192 + v * kWidth)));
  }

  void load(int64_t k, Vec* out) const {
    const unsigned block = block_of(k), in_half = block % 4;
    const std::byte* low = super + block / 4 * 64 + in_half % 2 * kBlock;
    const std::byte* high = super + 128 + block / 4 * kBlock;
    for (int half = 0; half < 2; ++half)
      load_6_bits(low + 16 * half, in_half / 2 * 4, high + 16 * half, in_half * 2, splat(scales[2 * block + half]),
                  out + half * kBlockVecs / 2);
  }

  const std::byte* super;
  alignas(64) float scales[16];  // of elements [16 i, 16 i + 16) at i
};

}  // namespace
}  // namespace hotset::cpu
