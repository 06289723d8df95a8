// Weight types as the float kernels see them: how to read kWidth elements, 32 elements, or one. Needs a float_vec_*.h.
#pragma once

#include "cpu/k_scales.h"
#include "cpu/kernels.h"

namespace hotset::cpu {
namespace {

constexpr int kBlockVecs = 32 / kWidth;  // Vecs that hold the 32 elements of a block

// Elements [k, k + kWidth) or element k of a row; `offset` is where element k starts, in bytes.
struct WeightF32 {
  static constexpr int64_t offset(int64_t k) { return k * 4; }
  static Vec load_vec(const std::byte* row, int64_t k) { return load(row + k * 4); }
  static float load_one(const std::byte* row, int64_t k) {
    float value;
    std::memcpy(&value, row + k * 4, sizeof value);
    return value;
  }
};

struct WeightF16 {
  static constexpr int64_t offset(int64_t k) { return k * 2; }
  static Vec load_vec(const std::byte* row, int64_t k) { return load_f16(row + k * 2); }
  static float load_one(const std::byte* row, int64_t k) { return half_value(row + k * 2); }
};

struct WeightBF16 {
  static constexpr int64_t offset(int64_t k) { return k * 2; }
  static Vec load_vec(const std::byte* row, int64_t k) { return load_bf16(row + k * 2); }
  static float load_one(const std::byte* row, int64_t k) {
    uint16_t half;
    std::memcpy(&half, row + k * 2, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

struct WeightQ8_0 {
  static constexpr int64_t offset(int64_t k) { return k / kBlock * 34; }
  static Vec load_vec(const std::byte* row, int64_t k) {
    const std::byte* block = row + offset(k);
    return mul(splat_half(block), load_i8(block + 2 + k % kBlock));
  }
  static float load_one(const std::byte* row, int64_t k) {
    const std::byte* block = row + offset(k);
    return half_value(block) * static_cast<float>(static_cast<int8_t>(block[2 + k % kBlock]));
  }
};

struct WeightQ4_0 {
  static constexpr int64_t offset(int64_t k) { return k / kBlock * 18; }
};

// Elements [k, k + 32) of a row, k a multiple of 32 for block types.
template <class T>
inline void load_block(T, const std::byte* row, int64_t k, Vec* out) {
  for (int v = 0; v < kBlockVecs; ++v) out[v] = T::load_vec(row, k + v * kWidth);
}

inline void load_block(WeightQ8_0, const std::byte* row, int64_t k, Vec* out) {
  const std::byte* block = row + WeightQ8_0::offset(k);
  const Vec scale = splat_half(block);
  for (int v = 0; v < kBlockVecs; ++v) out[v] = mul(scale, load_i8(block + 2 + v * kWidth));
}

inline void load_block(WeightQ4_0, const std::byte* row, int64_t k, Vec* out) {
  const std::byte* block = row + WeightQ4_0::offset(k);
  load_nibbles(block + 2, splat_half(block), out);
}

// False for block types: their rows are whole blocks.
template <class T>
constexpr bool kHasTail = true;
template <>
constexpr bool kHasTail<WeightQ8_0> = false;
template <>
constexpr bool kHasTail<WeightQ4_0> = false;

// Reads blocks of 32 elements of a row, n_blocks(k) of them from element k on, all there are unless they share something
// that is read beforehand: super-blocks have readers of their own, in float_k_weights.h. open(row, k, n) comes before
// load(k) of blocks in [k, k + n), which n_blocks(k) reaches.
template <class T>
struct BlockReader {
  static constexpr int64_t n_blocks(int64_t) { return int64_t{1} << 40; }
  void open(const std::byte* row_in, int64_t, int64_t) { row = row_in; }
  void load(int64_t k, Vec* out) const { load_block(T{}, row, k, out); }
  const std::byte* row;
};

// Elements [first, first + n) of a row to float; for block types both are multiples of 32.
template <class T>
inline void widen(const std::byte* row, int64_t first, int64_t n, float* out) {
  int64_t c = 0;
  while (c + kBlock <= n) {
    BlockReader<T> reader;
    const int64_t n_left = (n - c) / kBlock, n_reached = BlockReader<T>::n_blocks(first + c);
    const int64_t n_blocks = n_left < n_reached ? n_left : n_reached;
    reader.open(row, first + c, n_blocks * kBlock);
    for (int64_t b = 0; b < n_blocks; ++b, c += kBlock) {
      Vec block[kBlockVecs];
      reader.load(first + c, block);
      for (int v = 0; v < kBlockVecs; ++v) store(out + c + v * kWidth, block[v]);
    }
  }
  if constexpr (kHasTail<T>)
    for (; c < n; ++c) out[c] = T::load_one(row, first + c);
}

template <class T>
void dequantize_row(const std::byte* row, int64_t n, float* out) {
  widen<T>(row, 0, n, out);
}

}  // namespace
}  // namespace hotset::cpu
