// 16 elements of a K block to float, for every Vec that has no better way: 16 bytes at a time in the compiler's
// portable vectors. float_k_bits_avx512.h offers the same functions. Included after a float_vec_*.h.
#pragma once

namespace hotset::cpu {
namespace {

typedef uint16_t Words __attribute__((vector_size(16)));
typedef int8_t Bytes __attribute__((vector_size(16)));

// The bits from `shift` on of 16 bytes, those that `mask` leaves; it says so twice in a word.
inline Words bits_of_bytes(const std::byte* from, unsigned shift, uint16_t mask) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return (words >> shift) & mask;
}

// 16 signed bytes to float.
inline void widen_bytes(Words words, Vec* out) {
  std::byte bytes[16];
  std::memcpy(bytes, &words, sizeof bytes);
  for (int v = 0; v < 16 / kWidth; ++v) out[v] = load_i8(bytes + v * kWidth);
}

inline void scale_bytes(Words q, Vec scale, Vec minimum, Vec* out) {
  widen_bytes(q, out);
  for (int v = 0; v < 16 / kWidth; ++v) out[v] = fused(scale, out[v], minimum);
}

// out = fma(scale, q, minimum), q the nibbles at bit `shift` (0 or 4) of 16 bytes.
inline void load_4_bits(const std::byte* low, unsigned shift, Vec scale, Vec minimum, Vec* out) {
  scale_bytes(bits_of_bytes(low, shift, 0x0f0f), scale, minimum, out);
}

// The same with bit `high_shift` of the 16 bytes at `high` as bit 4 of q.
inline void load_5_bits(const std::byte* low, unsigned shift, const std::byte* high, unsigned high_shift, Vec scale,
                        Vec minimum, Vec* out) {
  const Words q = bits_of_bytes(low, shift, 0x0f0f) | bits_of_bytes(high, high_shift, 0x0101) << 4;
  scale_bytes(q, scale, minimum, out);
}

// out = scale * (q - 32), with the bits `high_shift` and + 1 of `high` as bits 4 and 5 of q.
inline void load_6_bits(const std::byte* low, unsigned shift, const std::byte* high, unsigned high_shift, Vec scale,
                        Vec* out) {
  const Words q = bits_of_bytes(low, shift, 0x0f0f) | bits_of_bytes(high, high_shift, 0x0303) << 4;
  widen_bytes(reinterpret_cast<Words>(reinterpret_cast<Bytes>(q) - 32), out);
  for (int v = 0; v < 16 / kWidth; ++v) out[v] = mul(scale, out[v]);
}

}  // namespace
}  // namespace hotset::cpu
