// The K types as the float kernels see them. Layouts: cpu/block_k_format.h. Integers are taken apart 16 bytes at a time
// in the compiler's portable vectors, which every Vec can be widened from.
#pragma once

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

typedef uint16_t Words __attribute__((vector_size(16)));
typedef int8_t Bytes __attribute__((vector_size(16)));

inline Words load_words(const std::byte* from) {
  Words out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

// Bits [shift, shift + width) of every byte, the width given by `mask`, twice in a word.
inline Words bits_of_bytes(Words words, int shift, uint16_t mask) { return (words >> shift) & mask; }

// 16 signed bytes to float.
inline void widen_bytes(Words words, Vec* out) {
  std::byte bytes[16];
  std::memcpy(bytes, &words, sizeof bytes);
  for (int v = 0; v < 16 / kWidth; ++v) out[v] = load_i8(bytes + v * kWidth);
}

struct SuperBlockReader {
  static constexpr bool kSuperBlocks = true;
  static constexpr int n_blocks(int64_t k) { return static_cast<int>((kSuperBlock - k % kSuperBlock) / kBlock); }
};

// Blocks of Q4_K and Q5_K: fma(d * scale, q, -(dmin * minimum)).
template <class T>
struct MinimumReader : SuperBlockReader {
  MinimumReader(const std::byte* row, int64_t k)
      : super(row + k / kSuperBlock * T::kBytes), first(static_cast<int>(k % kSuperBlock / kBlock)) {
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

  void load(int b, Vec* out) const {
    const int block = first + b;
    const std::byte* nibbles = super + T::kBytes - 128 + block / 2 * kBlock;
    const Vec scale = splat(scales[block]), minimum = splat(minima[8 + block]);
    for (int half = 0; half < 2; ++half) {
      Words q = bits_of_bytes(load_words(nibbles + 16 * half), block % 2 * 4, 0x0f0f);
      if constexpr (T::kBytes == WeightQ5_K::kBytes)
        q |= bits_of_bytes(load_words(super + 16 + 16 * half), block, 0x0101) << 4;
      Vec* to = out + half * kBlockVecs / 2;
      widen_bytes(q, to);
      for (int v = 0; v < kBlockVecs / 2; ++v) to[v] = fused(scale, to[v], minimum);
    }
  }

  const std::byte* super;
  int first;
  alignas(64) float scales[16];  // of block b at b
  alignas(64) float minima[16];  // of block b, negated, at 8 + b
};

template <>
struct BlockReader<WeightQ4_K> : MinimumReader<WeightQ4_K> {
  using MinimumReader::MinimumReader;
};
template <>
struct BlockReader<WeightQ5_K> : MinimumReader<WeightQ5_K> {
  using MinimumReader::MinimumReader;
};

// Blocks of Q6_K: d * scale * (q - 32), exact.
template <>
struct BlockReader<WeightQ6_K> : SuperBlockReader {
  BlockReader(const std::byte* row, int64_t k)
      : super(row + k / kSuperBlock * WeightQ6_K::kBytes), first(static_cast<int>(k % kSuperBlock / kBlock)) {
    const Vec d = splat_half(super + 208);
    for (int v = 0; v < 16 / kWidth; ++v) store(scales + v * kWidth, mul(d, load_i8(super + 192 + v * kWidth)));
  }

  void load(int b, Vec* out) const {
    const int block = first + b, in_half = block % 4;
    const std::byte* low = super + block / 4 * 64 + in_half % 2 * kBlock;
    const std::byte* high = super + 128 + block / 4 * kBlock;
    for (int half = 0; half < 2; ++half) {
      const Words nibbles = bits_of_bytes(load_words(low + 16 * half), in_half / 2 * 4, 0x0f0f);
      const Words pairs = bits_of_bytes(load_words(high + 16 * half), in_half * 2, 0x0303) << 4;
      const Vec scale = splat(scales[2 * block + half]);
      Vec* to = out + half * kBlockVecs / 2;
      widen_bytes(reinterpret_cast<Words>(reinterpret_cast<Bytes>(nibbles | pairs) - 32), to);
      for (int v = 0; v < kBlockVecs / 2; ++v) to[v] = mul(scale, to[v]);
    }
  }

  const std::byte* super;
  int first;
  alignas(64) float scales[16];  // of elements [16 i, 16 i + 16) at i
};

}  // namespace
}  // namespace hotset::cpu
