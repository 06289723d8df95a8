// `Vec` for any CPU: 4 floats in the compiler's portable vector type. Included by one file per instruction set, before
// the kernels written over Vec (float_dot.h and its neighbours). float_vec_avx2.h and float_vec_avx512.h offer the same
// names; what each does is said once, here. Every operation gives the same bits in all three.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/canonical.h"

namespace hotset::cpu {
namespace {

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
typedef double Vec2d __attribute__((vector_size(16)));

constexpr int kWidth = 4;            // floats in a Vec
constexpr int kParts = 16 / kWidth;  // Vecs that hold the 16 lanes of a dot
// Register tiles: rows x activations of a dot, of one part of its lanes in a gemm, activations of a small batch,
// activations x Vecs of a weighted row sum.
constexpr int kDotRows = 1;
constexpr int kDotActs = 2;
constexpr int kTileRows = 2;
constexpr int kTileActs = 2;
constexpr int kStreamTile = 2;
constexpr int kSumActs = 2;
constexpr int kSumVecs = 2;

inline Vec zero() { return Vec{}; }
inline Vec splat(float value) { return Vec{value, value, value, value}; }

inline Vec load(const void* from) {
  Vec out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// The first `count` < kWidth elements; the others read as 0 and are not written.
inline Vec load_some(const float* from, int64_t count) {
  Vec out{};
  for (int64_t i = 0; i < count; ++i) out[i] = from[i];
  return out;
}

inline void store_some(float* to, Vec value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
}

inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b when either is NaN
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }  // b when either is NaN

// fma1 for two numbers at once, short of the last rounding: the sum rounded to odd in double.
inline Vec2d fused_odd(Vec2d a, Vec2d b, Vec2d c) {
  typedef int64_t Bits __attribute__((vector_size(16)));
  const Vec2d product = a * b;
  const Vec2d sum = product + c;
  const Vec2d back = sum - product;
  const Vec2d error = (product - (sum - back)) + (c - back);
  const Vec2d none = {};
  const Bits bits = reinterpret_cast<Bits>(sum);
  const Bits inexact = (error < none) | (error > none);           // false for the NaN that infinite sums leave
  const Bits step = 1 + 2 * ((error > none) ^ (sum > none));      // towards the error: +1 or -1 in the bits
  return reinterpret_cast<Vec2d>(bits + (step & inexact & ((bits & 1) - 1)));
}

// The first or last two elements in double, exactly.
inline Vec2d low_half(Vec x) { return __builtin_convertvector(__builtin_shufflevector(x, x, 0, 1), Vec2d); }
inline Vec2d high_half(Vec x) { return low_half(__builtin_shufflevector(x, x, 2, 3, 2, 3)); }

// a * b + c with one rounding. Written with whole vectors: gcc 12 at -O3 gave wrong sums for an element-wise version.
inline Vec fused(Vec a, Vec b, Vec c) {
  typedef float Vec2f __attribute__((vector_size(8)));
  const Vec2f low = __builtin_convertvector(fused_odd(low_half(a), low_half(b), low_half(c)), Vec2f);
  const Vec2f high = __builtin_convertvector(fused_odd(high_half(a), high_half(b), high_half(c)), Vec2f);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3);
}

// The lane tree of cpu/kernels.h.
inline float lane_tree(const Vec* lanes) {
  const Vec four = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The lane trees of four dots.
inline void lane_trees4(const Vec* a, const Vec* b, const Vec* c, const Vec* d, float* out) {
  out[0] = lane_tree(a);
  out[1] = lane_tree(b);
  out[2] = lane_tree(c);
  out[3] = lane_tree(d);
}

// x * 2^n, rounded once, for integral n in [-152, 129] and |x| in [0.5, 2); NaN passes through.
inline Vec scale_pow2(Vec x, Vec n) {
  const Vec round = splat(12582912.0f);
  const Vec half = (n * splat(0.5f) + round) - round;
  const Vec bias = splat(8388608.0f + 127.0f);  // the sum's low 8 bits are the exponent field of 2^half
  const IntVec first = reinterpret_cast<IntVec>(half + bias) << 23;
  const IntVec second = reinterpret_cast<IntVec>((n - half) + bias) << 23;
  return (x * reinterpret_cast<Vec>(first)) * reinterpret_cast<Vec>(second);
}

// kWidth elements of a 16-bit format, widened exactly.
inline Vec load_f16(const std::byte* from) {
  uint16_t half[4];
  std::memcpy(half, from, sizeof half);
  const IntVec bits = {half[0], half[1], half[2], half[3]};
  const IntVec magnitude = (bits & 0x7fff) << 13;
  const Vec scaled = reinterpret_cast<Vec>(magnitude) * splat(0x1p112f);  // rebias; subnormals become exact normals
  const IntVec special = (magnitude >= (0x7c00 << 13)) & 0x7f800000;      // infinity and NaN keep their top exponent
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(scaled) | special | ((bits & 0x8000) << 16));
}

inline Vec load_bf16(const std::byte* from) {
  uint16_t half[4];
  std::memcpy(half, from, sizeof half);
  const IntVec bits = {half[0], half[1], half[2], half[3]};
  return reinterpret_cast<Vec>(bits << 16);
}

// One IEEE half to float, exactly.
inline float half_value(const std::byte* from) {
  std::byte padded[8] = {};
  std::memcpy(padded, from, 2);
  return load_f16(padded)[0];
}

// The half at `from` in every element.
inline Vec splat_half(const std::byte* from) { return splat(half_value(from)); }

// The two halves at `from`, whose bits are flipped by `flip` first, in even and odd elements.
inline Vec splat_halves(const std::byte* from, uint32_t flip) {
  uint32_t halves[2];
  std::memcpy(halves, from, sizeof halves[0]);
  halves[0] = halves[1] = halves[0] ^ flip;
  return load_f16(reinterpret_cast<const std::byte*>(halves));
}

// As many bytes as a Vec has, those from `at` on of 32 bytes that are repeated.
inline IntVec load_32_again(const std::byte* from, size_t at) {
  IntVec out;
  std::memcpy(&out, from + at % 32, sizeof out);
  return out;
}

// kWidth signed bytes.
inline Vec load_i8(const std::byte* from) {
  int8_t q[4];
  std::memcpy(q, from, sizeof q);
  return Vec{static_cast<float>(q[0]), static_cast<float>(q[1]), static_cast<float>(q[2]), static_cast<float>(q[3])};
}

// A Q4_0 block's 16 bytes, times its scale: the low nibbles less 8 are elements 0..15, the high ones 16..31.
inline void load_nibbles(const std::byte* from, Vec scale, Vec* out) {
  float values[32];
  for (int i = 0; i < 16; ++i) {
    const int both = static_cast<int>(from[i]);
    values[i] = static_cast<float>((both & 15) - 8);
    values[i + 16] = static_cast<float>((both >> 4) - 8);
  }
  std::memcpy(out, values, sizeof values);
  for (int v = 0; v < 8; ++v) out[v] *= scale;
}

// out = fma(scale, q, minimum), q the nibbles at bit `shift` (0 or 4) of 16 bytes.
inline void load_4_bits(const std::byte* from, unsigned shift, Vec scale, Vec minimum, Vec* out) {
  for (int v = 0; v < 4; ++v) {
    const auto nibble = [&](int i) { return static_cast<float>(static_cast<int>(from[4 * v + i]) >> shift & 15); };
    out[v] = fused(scale, Vec{nibble(0), nibble(1), nibble(2), nibble(3)}, minimum);
  }
}

// kWidth floats to half, round to nearest even; overflow becomes infinity, NaN stays a quiet NaN.
inline void store_f16(uint16_t* to, Vec value) {
  for (int i = 0; i < kWidth; ++i) {
    const float x = value[i];
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
      magnitude = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) {
      magnitude = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal half: a float addition rounds at 2^-24
      float small;
      std::memcpy(&small, &magnitude, sizeof small);
      small += 0.5f;
      std::memcpy(&magnitude, &small, sizeof magnitude);
      magnitude -= 0x3f000000u;
    } else {
      magnitude = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1)) >> 13;
    }
    to[i] = static_cast<uint16_t>(sign | magnitude);
  }
}

// Keeps the compiler from loading `value` again at each use instead of holding it in a register.
inline void pin(Vec&) {}

inline float square_root(float x) { return __builtin_sqrtf(x); }

}  // namespace
}  // namespace hotset::cpu
