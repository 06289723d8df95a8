// The 6-bit scales of Q4_K and Q5_K super-blocks, for every instruction set. Private to cpu/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace hotset::cpu {
namespace {

typedef uint32_t Dwords __attribute__((vector_size(16)));

// Scales 0..7, then minima 0..7 of a super-block, each a byte below 64. Its first 16 bytes are f16 d, f16 dmin and
// three dwords x, y, z: scales 0..3 are the low 6 bits of the bytes of x, minima 0..3 those of y; scales 4..7 are the
// low nibbles of z with the top bit pairs of x above them; minima 4..7 the high nibbles of z with the top pairs of y.
inline Dwords k_scale_bytes(const std::byte* super) {
  Dwords header;
  std::memcpy(&header, super, sizeof header);
  const Dwords low = __builtin_shufflevector(header, header, 1, 3, 2, 3) >> Dwords{0, 0, 0, 4};
  const Dwords high = __builtin_shufflevector(header, Dwords{}, 4, 1, 4, 2) >> Dwords{2, 2, 2, 2};
  return (low & Dwords{0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f}) | (high & Dwords{0, 0x30303030, 0, 0x30303030});
}

}  // namespace
}  // namespace hotset::cpu
