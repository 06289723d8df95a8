#include "core/quantize.h"

#include "core/error.h"
#include "core/quantize_k.h"
#include "core/unpacked_block.h"

namespace hotset {
namespace {

constexpr int kBlock = 32;  // of all types but the K types and IQ4_XS
constexpr float kLargestF16 = 65504;

// Magnitudes are ordered as their bits, infinity and NaN last; unlike a maximum of floats this one is vectorised.
uint32_t largest_magnitude_bits(const float* x, uint32_t n) {
  uint32_t most = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t bits = float_bits(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return most;
}

// f16 scale d = max|x| / 127, then 32 int8 rounded half away from zero.
void quantize_q8_0(const float* x, std::byte* out) {
  const float d = bits_float(largest_magnitude_bits(x, kBlock)) / 127.0f;
  const float inverse = inverse_or_zero(d);
  store_u16(f32_to_f16(d), out);
  int8_t q[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float scaled = x[i] * inverse;
    const float magnitude = std::fabs(scaled);
    const int32_t whole = static_cast<int32_t>(magnitude);
    const int32_t rounded = whole + (magnitude - static_cast<float>(whole) >= 0.5f ? 1 : 0);
    q[i] = static_cast<int8_t>(scaled < 0 ? -rounded : rounded);
  }
  std::memcpy(out + 2, q, sizeof q);
}

// 16 bytes of the low four bits of q.
void store_nibbles(const int32_t* q, std::byte* out) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<std::byte>((q[i] & 15) | (q[i + 16] & 15) << 4);
}

// 4 bytes of the fifth bits of q.
void store_fifth_bits(const int32_t* q, std::byte* out) {
  uint32_t bits = 0;
  for (int i = 0; i < kBlock; ++i) bits |= static_cast<uint32_t>(q[i] >> 4) << i;
  std::memcpy(out, &bits, sizeof bits);
}

// q = (x - low) / d + shift to the nearest integer, halves up, at most `most`.
void assign(const float* x, float d, float low, float shift, int32_t most, int32_t* q) {
  const float inverse = inverse_or_zero(d);
  for (int i = 0; i < kBlock; ++i) {
    const int32_t shifted = static_cast<int32_t>((x[i] - low) * inverse + (shift + 0.5f));
    q[i] = shifted < most ? shifted : most;
  }
}

// f16 scale d = max / -half, where max is the first element of the largest magnitude, then q: what Q4_0 (half = 8) and
// Q5_0 (16) store. `at` gets the scale.
void quantize_signed(const float* x, int32_t half, std::byte* at, int32_t* q) {
  const uint32_t most = largest_magnitude_bits(x, kBlock);
  int first = 0;
  while ((float_bits(x[first]) & 0x7fffffffu) != most) ++first;
  const float d = x[first] / static_cast<float>(-half);
  store_u16(f32_to_f16(d), at);
  assign(x, d, 0.0f, static_cast<float>(half), 2 * half - 1, q);
}

// f16 scale d = (max - min) / most and f16 min, then q: what Q4_1 (most = 15) and Q5_1 (31) store.
void quantize_between(const float* x, int32_t most, std::byte* at, int32_t* q) {
  float low = x[0], high = x[0];
  for (int i = 1; i < kBlock; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float d = (high - low) / static_cast<float>(most);
  store_u16(f32_to_f16(d), at);
  store_u16(f32_to_f16(low), at + 2);
  assign(x, d, low, 0.0f, most, q);
}

void quantize_q4_0(const float* x, std::byte* out) {
  int32_t q[kBlock];
  quantize_signed(x, 8, out, q);
  store_nibbles(q, out + 2);
}

void quantize_q5_0(const float* x, std::byte* out) {
  int32_t q[kBlock];
  quantize_signed(x, 16, out, q);
  store_fifth_bits(q, out + 2);
  store_nibbles(q, out + 6);
}

void quantize_q4_1(const float* x, std::byte* out) {
  int32_t q[kBlock];
  quantize_between(x, 15, out, q);
  store_nibbles(q, out + 4);
}

void quantize_q5_1(const float* x, std::byte* out) {
  int32_t q[kBlock];
  quantize_between(x, 31, out, q);
  store_fifth_bits(q, out + 4);
  store_nibbles(q, out + 8);
}

// A power of two of which the largest magnitude is 4 to 8 times, then the nearest of its multiples by kMxfp4Values / 2.
void quantize_mxfp4(const float* x, std::byte* out) {
  const int exponent = static_cast<int>(largest_magnitude_bits(x, kBlock) >> 23) - 2;
  const uint8_t stored = static_cast<uint8_t>(exponent > 0 ? exponent : 0);
  const float scale = block_format::mxfp4_scale(stored);
  out[0] = static_cast<std::byte>(stored);
  int32_t q[kBlock];
  float least[kBlock];  // the error of q
  for (int i = 0; i < kBlock; ++i) q[i] = 0, least[i] = std::fabs(x[i]);
  for (int code = 1; code < 16; ++code)
    for (int i = 0; i < kBlock; ++i) {
      const float error = std::fabs(scale * static_cast<float>(block_format::kMxfp4Values[code]) - x[i]);
      q[i] = error < least[i] ? code : q[i];
      least[i] = error < least[i] ? error : least[i];
    }
  store_nibbles(q, out + 1);
}

void dequantize_q8_0(const std::byte* block, float* out) {
  const float d = f16_to_f32(load_u16(block));
  int8_t q[kBlock];
  std::memcpy(q, block + 2, sizeof q);
  for (int i = 0; i < kBlock; ++i) out[i] = static_cast<float>(q[i]) * d;
}

void dequantize_q4_0(const std::byte* block, float* out) {
  const float d = f16_to_f32(load_u16(block));
  uint8_t q[16];
  std::memcpy(q, block + 2, sizeof q);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((q[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

// Rows of a block type from its function for one block of finite values. Other blocks get all bits set: the scales are
// NaN, and so is what they decode to (MXFP4, which has no NaN: -infinity).
template <void (*kEncode)(const float*, std::byte*)>
void encode_blocks(DType type, const float* x, int64_t n, std::byte* out) {
  const DTypeInfo& info = dtype_info(type);
  for (int64_t at = 0; at < n; at += info.block_size, out += info.block_bytes) {
    if (largest_magnitude_bits(x + at, info.block_size) < 0x7f800000u)
      kEncode(x + at, out);
    else
      std::memset(out, 0xff, info.block_bytes);
  }
}

template <void (*kDecode)(const std::byte*, float*)>
void decode_blocks(DType type, const std::byte* row, int64_t n, float* out) {
  const DTypeInfo& info = dtype_info(type);
  for (int64_t at = 0; at < n; at += info.block_size, row += info.block_bytes) kDecode(row, out + at);
}

template <class Format>
void decode_unpacked(const std::byte* row, int64_t n, float* out) {
  for (int64_t b = 0; b < n / kBlock; ++b, out += kBlock) {
    UnpackedBlock block;
    unpack<Format>(row + b / Format::kBlocks * Format::kBytes, static_cast<int>(b % Format::kBlocks), block);
    for (int i = 0; i < kBlock; ++i) {
      const int half = i / 16;
      out[i] = block.d * static_cast<float>(block.c[half]) * static_cast<float>(block.q[i]);
      if constexpr (Format::kHasMinimum) out[i] -= block.m * static_cast<float>(block.k[half]);
    }
  }
}

template <uint16_t (*kNarrow)(float)>
void encode_halves(const float* x, int64_t n, std::byte* out) {
  for (int64_t i = 0; i < n; ++i) store_u16(kNarrow(x[i]), out + 2 * i);
}

template <float (*kWiden)(uint16_t)>
void decode_halves(const std::byte* row, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = kWiden(load_u16(row + 2 * i));
}

[[noreturn]] void fail_type(DType type) {
  throw Error(error_text("quantize", "tensor type", dtypes_with_kernels(), dtype_name(type),
                         "use a file of another quantisation"));
}

void check_row(DType type, int64_t n) { HS_CHECK(n >= 0 && n % dtype_info(type).block_size == 0, "quantize"); }

}  // namespace

DType fitting_type(DType type, int64_t n) {
  for (const DType candidate : {type, DType::kQ8_0})
    if (n % dtype_info(candidate).block_size == 0) return candidate;
  return DType::kF16;
}

bool dtype_has_codec(DType type) { return dtype_has_kernels(type); }

float largest_value(DType type) {
  switch (type) {
    case DType::kF16: return kLargestF16;
    case DType::kBF16: return 3.38953139e38f;
    case DType::kQ8_0: return kLargestF16 * 127;
    case DType::kQ4_0: return kLargestF16 * 8;
    case DType::kQ5_0: return kLargestF16 * 16;
    case DType::kQ4_1:
    case DType::kQ5_1: return kLargestF16;  // of the minimum
    case DType::kIQ4_NL: return kLargestF16 * 127 / 2;
    case DType::kIQ4_XS: return kLargestF16 * 127 * 32 / 2;
    case DType::kQ2_K: return kLargestF16 * 15 / 2;
    case DType::kQ3_K: return kLargestF16 * 4 * 32 / 2;
    case DType::kQ4_K:
    case DType::kQ5_K: return kLargestF16 * 63 / 2;  // of the minimum; half, because a fitted line may reach further
    case DType::kQ6_K: return kLargestF16 * 32 * 128 / 2;
    default: return 3.40282347e38f;
  }
}

void quantize_row(DType type, const float* x, int64_t n, std::byte* out) {
  check_row(type, n);
  switch (type) {
    case DType::kF32:
      if (n > 0) std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16: return encode_halves<f32_to_f16>(x, n, out);
    case DType::kBF16: return encode_halves<f32_to_bf16>(x, n, out);
    case DType::kQ8_0: return encode_blocks<quantize_q8_0>(type, x, n, out);
    case DType::kQ4_0: return encode_blocks<quantize_q4_0>(type, x, n, out);
    case DType::kQ4_K: return encode_blocks<quantize_q4_k>(type, x, n, out);
    case DType::kQ5_K: return encode_blocks<quantize_q5_k>(type, x, n, out);
    case DType::kQ6_K: return encode_blocks<quantize_q6_k>(type, x, n, out);
    case DType::kQ4_1: return encode_blocks<quantize_q4_1>(type, x, n, out);
    case DType::kQ5_0: return encode_blocks<quantize_q5_0>(type, x, n, out);
    case DType::kQ5_1: return encode_blocks<quantize_q5_1>(type, x, n, out);
    case DType::kQ2_K: return encode_blocks<quantize_q2_k>(type, x, n, out);
    case DType::kQ3_K: return encode_blocks<quantize_q3_k>(type, x, n, out);
    case DType::kIQ4_NL: return encode_blocks<quantize_iq4_nl>(type, x, n, out);
    case DType::kIQ4_XS: return encode_blocks<quantize_iq4_xs>(type, x, n, out);
    case DType::kMXFP4: return encode_blocks<quantize_mxfp4>(type, x, n, out);
    default: fail_type(type);
  }
}

void dequantize_row(DType type, const std::byte* row, int64_t n, float* out) {
  check_row(type, n);
  switch (type) {
    case DType::kF32:
      if (n > 0) std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16: return decode_halves<f16_to_f32>(row, n, out);
    case DType::kBF16: return decode_halves<bf16_to_f32>(row, n, out);
    case DType::kQ8_0: return decode_blocks<dequantize_q8_0>(type, row, n, out);
    case DType::kQ4_0: return decode_blocks<dequantize_q4_0>(type, row, n, out);
    case DType::kQ4_K: return decode_blocks<dequantize_q4_k>(type, row, n, out);
    case DType::kQ5_K: return decode_blocks<dequantize_q5_k>(type, row, n, out);
    case DType::kQ6_K: return decode_blocks<dequantize_q6_k>(type, row, n, out);
    case DType::kQ4_1: return decode_unpacked<block_format::Q4_1>(row, n, out);
    case DType::kQ5_0: return decode_unpacked<block_format::Q5_0>(row, n, out);
    case DType::kQ5_1: return decode_unpacked<block_format::Q5_1>(row, n, out);
    case DType::kQ2_K: return decode_unpacked<block_format::Q2_K>(row, n, out);
    case DType::kQ3_K: return decode_unpacked<block_format::Q3_K>(row, n, out);
    case DType::kIQ4_NL: return decode_unpacked<block_format::IQ4_NL>(row, n, out);
    case DType::kIQ4_XS: return decode_unpacked<block_format::IQ4_XS>(row, n, out);
    case DType::kMXFP4: return decode_unpacked<block_format::MXFP4>(row, n, out);
    default: fail_type(type);
  }
}

}  // namespace hotset
