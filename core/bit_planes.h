// Weights of 1 to 3 bits: a coarse copy of a detect matrix, from which the units that may be active are predicted.
//
// A weight is taken for low + step * code with a row's own low and step. A row is cut into groups of 256 codes, the
// last one filled up with zeros. A group holds the two low bits of its codes in 64 bytes, code i in bits 2 * (i / 64)
// and above of byte i % 64, then (3 bits) or instead (1 bit) one more bit in 32 bytes, that of code i in bit i % 8 of
// byte i / 8.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hotset {

constexpr int64_t kPlaneGroup = 256;
constexpr int kMaxPlaneBits = 3;

// Bytes of a group, and of a row of n codes.
constexpr int64_t plane_group_bytes(int n_bits) { return n_bits == 1 ? 32 : n_bits == 2 ? 64 : 96; }
constexpr int64_t plane_row_bytes(int n_bits, int64_t n) {
  return (n + kPlaneGroup - 1) / kPlaneGroup * plane_group_bytes(n_bits);
}

// Code i of a row.
int plane_code(const std::byte* row, int n_bits, int64_t i);

// What the codes of a row mean, and the norm of what they leave out: the square root of the sum of squares of
// weight - (low + step * code).
struct PlaneFit {
  float low = 0, step = 0, error = 0;
};

// Codes n weights: levels evenly apart, placed by least squares. Writes plane_row_bytes(n_bits, n) bytes. A row with a
// weight that is not finite gets codes 0 and low NaN, so that nothing is predicted from it.
PlaneFit encode_planes(const float* weights, int64_t n, int n_bits, std::byte* out);

}  // namespace hotset
