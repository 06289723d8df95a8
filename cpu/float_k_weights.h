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
  static constexpr int64_t n_blocks(int64_t k) { return kSuperBlock / kBlock - block_of(k); }
  // Unsigned, so that divisions are shifts.
  static constexpr int64_t super_of(int64_t k) { return static_cast<int64_t>(static_cast<uint64_t>(k) / kSuperBlock); }
  static constexpr unsigned block_of(int64_t k) {
    return static_cast<unsigned>(static_cast<uint64_t>(k) % kSuperBlock / kBlock);
  }
  // Whether blocks of the first or second half of the super-block are among elements [k, k + n).
  static constexpr bool first_half(int64_t k) { return block_of(k) < 4; }
  static constexpr bool second_half(int64_t k, int64_t n) { return block_of(k) + n / kBlock > 4; }
};

// Scales and minima of Q4_K and Q5_K, whose elements are fma(d * scale, q, -(dmin * minimum)).
template <class T>
struct MinimumReader : SuperBlockReader {
  void open_scales(const std::byte* row, int64_t k) {
    typedef int8_t Bytes16 __attribute__((vector_size(16)));
    super = row + super_of(k) * T::kBytes;
    const Bytes16 apart = reinterpret_cast<Bytes16>(k_scale_bytes(super));
    const Bytes16 pairs = __builtin_shufflevector(apart, apart, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    std::byte bytes[16];
    std::memcpy(bytes, &pairs, sizeof bytes);
    const Vec d_and_minus_dmin = splat_halves(super, 0x80000000);
    for (int v = 0; v < 16 / kWidth; ++v)
      store(scales + v * kWidth, mul(d_and_minus_dmin, load_i8(bytes + v * kWidth)));
  }
  Vec scale(unsigned block) const { return splat(scales[2 * block]); }
  Vec minimum(unsigned block) const { return splat(scales[2 * block + 1]); }

  const std::byte* super;
  alignas(64) float scales[16];  // scale and negated minimum of each block
};

template <>
struct BlockReader<WeightQ4_K> : MinimumReader<WeightQ4_K> {
  void open(const std::byte* row, int64_t k, int64_t) { open_scales(row, k); }

  void load(int64_t k, Vec* out) const {
    const unsigned block = block_of(k);
    const std::byte* nibbles = super + 16 + block / 2 * kBlock;
    for (int half = 0; half < 2; ++half)
      load_4_bits(nibbles + 16 * half, block % 2 * 4, scale(block), minimum(block), out + half * kBlockVecs / 2);
  }
};

template <>
struct BlockReader<WeightQ5_K> : MinimumReader<WeightQ5_K> {
  void open(const std::byte* row, int64_t k, int64_t n) {
    open_scales(row, k);
    if (first_half(k)) unpack_5_bits<0>(super + 48, super + 16, q);
    if (second_half(k, n)) unpack_5_bits<1>(super + 112, super + 16, q + 128);
  }

  void load(int64_t k, Vec* out) const {
    const unsigned block = block_of(k);
    const std::byte* from = q + block / 4 * 128 + block % 2 * 64 + block % 4 / 2 * 32;
    for (int v = 0; v < kBlockVecs; ++v) out[v] = fused(scale(block), load_i8(from + v * kWidth), minimum(block));
  }

  alignas(64) std::byte q[kSuperBlock];
};

// Elements are d * scale * (q - 32), exactly.
template <>
struct BlockReader<WeightQ6_K> : SuperBlockReader {
  void open(const std::byte* row, int64_t k, int64_t n) {
    const std::byte* super = row + super_of(k) * WeightQ6_K::kBytes;
    const Vec d = splat_half(super + 208);
    for (int v = 0; v < 16 / kWidth; ++v) store(scales + v * kWidth, mul(d, load_i8(super + 192 + v * kWidth)));
    if (first_half(k)) unpack_6_bits(super, super + 128, q);
    if (second_half(k, n)) unpack_6_bits(super + 64, super + 160, q + 128);
  }

  void load(int64_t k, Vec* out) const {
    const unsigned block = block_of(k);
    for (int v = 0; v < kBlockVecs; ++v)
      out[v] = mul(splat(scales[2 * block + 2 * v / kBlockVecs]), load_i8(q + block * kBlock + v * kWidth));
  }

  alignas(64) float scales[16];  // of elements [16 i, 16 i + 16) at i
  alignas(64) std::byte q[kSuperBlock];
};

}  // namespace
}  // namespace hotset::cpu
