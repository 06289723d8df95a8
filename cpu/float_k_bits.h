// 16 elements of a K block to float. Bytes are spread to dwords first, which blocks that share them do once. (Looking q
// up in a table of 16 scaled values takes a shuffle of 512 bits per vector and was a quarter slower on Zen 5.) Needs a
// float_vec_*.h.
#pragma once

namespace hotset::cpu {
namespace {

typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef float Floats __attribute__((vector_size(4 * kWidth)));

inline Ints spread(const std::byte* from) { return reinterpret_cast<Ints>(spread_bytes(from)); }

// Dwords moved from bit `from` to bit `to`.
inline Ints move_bits(Ints v, unsigned from, unsigned to) { return from >= to ? v >> (from - to) : v << (to - from); }

inline Vec to_float(Ints v) { return reinterpret_cast<Vec>(__builtin_convertvector(v, Floats)); }

// Part v of the 16 nibbles at bit `shift` (0 or 4) of 16 bytes.
inline Ints low_bits(const std::byte* low, unsigned shift, int v) {
  return move_bits(spread(low + v * kWidth), shift, 0) & 0xf;
}

// out = fma(scale, q, minimum), q the nibbles at bit `shift` (0 or 4) of 16 bytes.
inline void load_4_bits(const std::byte* low, unsigned shift, Vec scale, Vec minimum, Vec* out) {
  for (int v = 0; v < 16 / kWidth; ++v) out[v] = fused(scale, to_float(low_bits(low, shift, v)), minimum);
}

// The same with bit `high_shift` of the 16 bytes at `high` as bit 4 of q.
inline void load_5_bits(const std::byte* low, unsigned shift, const std::byte* high, unsigned high_shift, Vec scale,
                        Vec minimum, Vec* out) {
  for (int v = 0; v < 16 / kWidth; ++v) {
    const Ints q = low_bits(low, shift, v) | (move_bits(spread(high + v * kWidth), high_shift, 4) & 0x10);
    out[v] = fused(scale, to_float(q), minimum);
  }
}

// out = scale * (q - 32), with the bits `high_shift` and + 1 of `high` as bits 4 and 5 of q.
inline void load_6_bits(const std::byte* low, unsigned shift, const std::byte* high, unsigned high_shift, Vec scale,
                        Vec* out) {
  for (int v = 0; v < 16 / kWidth; ++v) {
    const Ints q = low_bits(low, shift, v) | (move_bits(spread(high + v * kWidth), high_shift, 4) & 0x30);
    out[v] = mul(scale, to_float(q - 32));
  }
}

}  // namespace
}  // namespace hotset::cpu
