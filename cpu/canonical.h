// Scalar pieces of the canonical arithmetic (see cpu/kernels.h), shared by every instruction set and by tests.
#pragma once

#include <cstdint>
#include <cstring>

namespace hotset::cpu {
namespace {

// a * b + c with one rounding. Without an FMA unit: the product is exact in double, the sum is rounded to odd there
// (Boldo and Melquiond 2008), so the final rounding to float is the only one that counts.
inline float fma1(float a, float b, float c) {
#if defined(__FMA__)
  return __builtin_fmaf(a, b, c);
#else
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = static_cast<double>(c);
  double sum = product + addend;
  int64_t bits;
  std::memcpy(&bits, &sum, sizeof bits);
  // Unless the rounded sum looks like the middle between two floats or is subnormal there, rounding twice is harmless.
  const bool middle = (bits & 0x1fffffff) == 0x10000000;
  if (!middle && (bits & INT64_MAX) >= 0x3810000000000000) return static_cast<float>(sum);
  const double back = sum - product;  // TwoSum: error is what the addition lost
  const double error = (product - (sum - back)) + (addend - back);
  if (error != 0.0 && (bits & 1) == 0 && sum - sum == 0.0) {  // inexact, even, finite: step towards the error
    bits += ((error > 0.0) == (sum > 0.0)) ? 1 : -1;
    std::memcpy(&sum, &bits, sizeof sum);
  }
  return static_cast<float>(sum);
#endif
}

// The lane tree over 16 partial sums; destroys `lane`.
inline float reduce_lanes(float* lane) {
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

}  // namespace
}  // namespace hotset::cpu
