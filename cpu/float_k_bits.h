// Unpacks the integers of K super-blocks to bytes, half a super-block at a time. Layouts: cpu/block_k_format.h. Needs a
// float_vec_*.h.
#pragma once

namespace hotset::cpu {
namespace {

// Bytes, moved and masked as dwords: no bit that is kept comes from a neighbouring byte.
typedef uint32_t Bits __attribute__((vector_size(4 * kWidth)));

// `first` in the dwords that belong to the first 32 of 64 bytes, `second` in the others, for the Bits at byte `at`.
inline Bits by_half(size_t at, uint32_t first, uint32_t second) {
  Bits out;
  for (size_t d = 0; d < kWidth; ++d) out[d] = at + 4 * d < 32 ? first : second;
  return out;
}

// Calls f(low, high, at) for the pieces of 64 bytes of nibbles, each with the piece of the 32 bytes of `high` that lies
// beside it.
template <class F>
inline void for_pieces(const std::byte* nibbles, const std::byte* high, F f) {
#pragma GCC unroll 4
  for (size_t at = 0; at < 64; at += sizeof(Bits)) {
    Bits low;
    std::memcpy(&low, nibbles + at, sizeof low);
    f(low, reinterpret_cast<Bits>(load_32_again(high, at)), at);
  }
}

template <class V>
inline void store_bytes(std::byte* to, V bytes) {
  std::memcpy(to, &bytes, sizeof bytes);
}

// Half h of a Q5_K super-block, q of blocks 4 h, 4 h + 2, 4 h + 1, 4 h + 3: nibbles below bit b of `high` of block b.
template <int h>
inline void unpack_5_bits(const std::byte* nibbles, const std::byte* high, std::byte* to) {
  for_pieces(nibbles, high, [&](Bits low, Bits bits, size_t at) {
    const Bits even = h == 0 ? bits << by_half(at, 4, 2) : bits >> by_half(at, 0, 2);
    const Bits odd = h == 0 ? bits << by_half(at, 3, 1) : bits >> by_half(at, 1, 3);
    store_bytes(to + at, (low & 0x0f0f0f0f) | (even & 0x10101010));
    store_bytes(to + 64 + at, ((low >> 4) & 0x0f0f0f0f) | (odd & 0x10101010));
  });
}

// Half of a Q6_K super-block, q - 32 of its 4 blocks: nibbles below bits 2 b and 2 b + 1 of `high` of block b.
inline void unpack_6_bits(const std::byte* nibbles, const std::byte* high, std::byte* to) {
  typedef int8_t Bytes __attribute__((vector_size(4 * kWidth)));
  for_pieces(nibbles, high, [&](Bits low, Bits bits, size_t at) {
    const Bits first = (low & 0x0f0f0f0f) | ((bits << by_half(at, 4, 2)) & 0x30303030);
    const Bits second = ((low >> 4) & 0x0f0f0f0f) | ((bits >> by_half(at, 0, 2)) & 0x30303030);
    store_bytes(to + at, reinterpret_cast<Bytes>(first) - int8_t{32});
    store_bytes(to + 64 + at, reinterpret_cast<Bytes>(second) - int8_t{32});
  });
}

}  // namespace
}  // namespace hotset::cpu
