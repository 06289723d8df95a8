// Block types that share their code: each is a struct that turns its bytes into small integers and scales, from which
// every value, sum and dot of the type follows. docs/FORMATS.md gives the bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace hotset {
namespace {  // of each file that includes it: kernels are compiled for several instruction sets

// 32 elements; element i of half h = i / 16 is (d * c[h]) * q[i] - m * k[h]. All products are exact in float: d and m
// have 11 bits, c 6, q 7, k 4. Without a minimum m is 0.
struct UnpackedBlock {
  float d;
  float m;
  int16_t c[2];
  int16_t k[2];
  int8_t q[32];
};

namespace block_format {

inline int byte_at(const std::byte* from, int i) { return static_cast<int>(from[i]); }

inline float half_at(const std::byte* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return f16_to_f32(bits);
}

inline void set_plain(float d, float m, UnpackedBlock& out) {
  out.d = d;
  out.m = m;
  out.c[0] = out.c[1] = 1;
  out.k[0] = out.k[1] = 1;
}

// Element i of 16 bytes of nibbles: the low ones are elements 0..15, the high ones 16..31.
inline int nibble_at(const std::byte* from, int i) { return byte_at(from, i % 16) >> (i / 16 * 4) & 15; }

// The values of the 16 codes of IQ4_NL and IQ4_XS, and twice those of MXFP4.
alignas(16) constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                      1,    13,   25,  38,  53,  69,  89,  113};
alignas(16) constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(exponent - 128): half of what the exponent says, as kMxfp4Values are doubled.
inline float mxfp4_scale(uint8_t exponent) {
  return bits_float(exponent < 2 ? 0x00200000u << exponent : static_cast<uint32_t>(exponent - 1) << 23);
}

// Each format: kBytes hold kBlocks blocks, of which unpack_scales() and unpack_q() read one.

struct Q4_1 {  // f16 d, f16 m, nibbles: d * q + m
  static constexpr int kBytes = 20, kBlocks = 1;
  static constexpr bool kHasMinimum = true;
  static void unpack_scales(const std::byte* from, int, UnpackedBlock& out) {
    set_plain(half_at(from), -half_at(from + 2), out);
  }
  static void unpack_q(const std::byte* from, int, int8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(nibble_at(from + 4, i));
  }
};

struct Q5_0 {  // f16 d, 32 bits: bit 4 of each element, nibbles: d * (q - 16)
  static constexpr int kBytes = 22, kBlocks = 1;
  static constexpr bool kHasMinimum = false;
  static void unpack_scales(const std::byte* from, int, UnpackedBlock& out) {
    set_plain(half_at(from), 0.0f, out);
  }
  static void unpack_q(const std::byte* from, int, int8_t* q) {
    for (int i = 0; i < 32; ++i)
      q[i] = static_cast<int8_t>((nibble_at(from + 6, i) | (byte_at(from, 2 + i / 8) >> i % 8 & 1) << 4) - 16);
  }
};

struct Q5_1 {  // f16 d, f16 m, 32 bits, nibbles: d * q + m
  static constexpr int kBytes = 24, kBlocks = 1;
  static constexpr bool kHasMinimum = true;
  static void unpack_scales(const std::byte* from, int, UnpackedBlock& out) {
    set_plain(half_at(from), -half_at(from + 2), out);
  }
  static void unpack_q(const std::byte* from, int, int8_t* q) {
    for (int i = 0; i < 32; ++i)
      q[i] = static_cast<int8_t>(nibble_at(from + 8, i) | (byte_at(from, 4 + i / 8) >> i % 8 & 1) << 4);
  }
};

struct IQ4_NL {  // f16 d, nibbles: d * kIq4Values[q]
  static constexpr int kBytes = 18, kBlocks = 1;
  static constexpr bool kHasMinimum = false;
  static void unpack_scales(const std::byte* from, int, UnpackedBlock& out) {
    set_plain(half_at(from), 0.0f, out);
  }
  static void unpack_q(const std::byte* from, int, int8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] = kIq4Values[nibble_at(from + 2, i)];
  }
};

struct MXFP4 {  // exponent of the scale, nibbles: scale * kMxfp4Values[q]
  static constexpr int kBytes = 17, kBlocks = 1;
  static constexpr bool kHasMinimum = false;
  static void unpack_scales(const std::byte* from, int, UnpackedBlock& out) {
    set_plain(mxfp4_scale(static_cast<uint8_t>(from[0])), 0.0f, out);
  }
  static void unpack_q(const std::byte* from, int, int8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] = kMxfp4Values[nibble_at(from + 1, i)];
  }
};

// Two bits of element i of block b, of 64 bytes: byte 32 h + i has those of blocks 4 h .. 4 h + 3.
inline int two_bits_at(const std::byte* from, int b, int i) { return byte_at(from, b / 4 * 32 + i) >> (b % 4 * 2) & 3; }

struct Q2_K {  // 16 bytes: scale low and minimum high of each half block, 64 bytes of q, f16 d, f16 dmin
  static constexpr int kBytes = 84, kBlocks = 8;
  static constexpr bool kHasMinimum = true;
  static constexpr int kQAt = 16, kDAt = 80;
  static void unpack_scales(const std::byte* from, int b, UnpackedBlock& out) {
    out.d = half_at(from + kDAt);
    out.m = half_at(from + kDAt + 2);
    for (int h = 0; h < 2; ++h) {
      out.c[h] = static_cast<int16_t>(byte_at(from, 2 * b + h) & 15);
      out.k[h] = static_cast<int16_t>(byte_at(from, 2 * b + h) >> 4);
    }
  }
  static void unpack_q(const std::byte* from, int b, int8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(two_bits_at(from + kQAt, b, i));
  }
};

struct Q3_K {  // 32 bytes: bit b of byte i is that of element i of block b, 64 bytes of two bits, 12 of scales, f16 d
  static constexpr int kBytes = 110, kBlocks = 8;
  static constexpr bool kHasMinimum = false;
  static constexpr int kQAt = 32, kScalesAt = 96, kDAt = 108;
  // Scale of half block i, 6 bits less 32: four in a nibble, two in bits 2 (i / 4) of byte 8 + i % 4.
  static int scale_at(const std::byte* from, int i) {
    const int low = byte_at(from, kScalesAt + i % 8) >> (i / 8 * 4) & 15;
    return (low | (byte_at(from, kScalesAt + 8 + i % 4) >> (i / 4 * 2) & 3) << 4) - 32;
  }
  static void unpack_scales(const std::byte* from, int b, UnpackedBlock& out) {
    out.d = half_at(from + kDAt);
    out.m = 0.0f;
    for (int h = 0; h < 2; ++h) {
      out.c[h] = static_cast<int16_t>(scale_at(from, 2 * b + h));
      out.k[h] = 0;
    }
  }
  static void unpack_q(const std::byte* from, int b, int8_t* q) {
    for (int i = 0; i < 32; ++i)
      q[i] = static_cast<int8_t>((two_bits_at(from + kQAt, b, i) | (byte_at(from, i) >> b & 1) << 2) - 4);
  }
};

struct IQ4_XS {  // f16 d, 16 bits: two high bits of each scale, 4 bytes: four low bits, 8 x 16 bytes of nibbles
  static constexpr int kBytes = 136, kBlocks = 8;
  static constexpr bool kHasMinimum = false;
  static constexpr int kDAt = 0, kQAt = 8;
  static void unpack_scales(const std::byte* from, int b, UnpackedBlock& out) {
    const int low = byte_at(from, 4 + b / 2) >> (b % 2 * 4) & 15, high = byte_at(from, 2 + b / 4) >> (b % 4 * 2) & 3;
    out.d = half_at(from);
    out.m = 0.0f;
    out.c[0] = out.c[1] = static_cast<int16_t>((low | high << 4) - 32);
    out.k[0] = out.k[1] = 0;
  }
  static void unpack_q(const std::byte* from, int b, int8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] = kIq4Values[nibble_at(from + kQAt + 16 * b, i)];
  }
};

}  // namespace block_format

// Block b of the blocks at `from`.
template <class Format>
inline void unpack(const std::byte* from, int b, UnpackedBlock& out) {
  Format::unpack_scales(from, b, out);
  Format::unpack_q(from, b, out.q);
}

}  // namespace
}  // namespace hotset
