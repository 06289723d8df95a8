#include "core/quantize.h"

#include "core/error.h"
#include "core/quantize_k.h"

namespace hotset {
namespace {

constexpr int kBlock = 32;  // of Q8_0 and Q4_0
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

// f16 scale d = max / -8, where max is the first element of the largest magnitude, then 16 bytes of nibbles.
void quantize_q4_0(const float* x, std::byte* out) {
  const uint32_t most = largest_magnitude_bits(x, kBlock);
  int at = 0;
  while ((float_bits(x[at]) & 0x7fffffffu) != most) ++at;
  const float d = x[at] / -8.0f;
  const float inverse = inverse_or_zero(d);
  store_u16(f32_to_f16(d), out);
  int32_t q[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const int32_t shifted = static_cast<int32_t>(x[i] * inverse + 8.5f);
    q[i] = shifted < 15 ? shifted : 15;
  }
  for (int i = 0; i < 16; ++i) out[2 + i] = static_cast<std::byte>(q[i] | q[i + 16] << 4);
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
// NaN, and so is what they decode to.
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

template <uint16_t (*kNarrow)(float)>
void encode_halves(const float* x, int64_t n, std::byte* out) {
  for (int64_t i = 0; i < n; ++i) store_u16(kNarrow(x[i]), out + 2 * i);
}

template <float (*kWiden)(uint16_t)>
void decode_halves(const std::byte* row, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = kWiden(load_u16(row + 2 * i));
}

[[noreturn]] void fail_type(DType type) {
  throw Error(error_text("quantize", "tensor type", "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K or Q6_K", dtype_name(type),
                         "use a file of another quantisation"));
}

void check_row(DType type, int64_t n) { HS_CHECK(n >= 0 && n % dtype_info(type).block_size == 0, "quantize"); }

}  // namespace

DType fitting_type(DType type, int64_t n) {
  for (const DType candidate : {type, DType::kQ8_0})
    if (n % dtype_info(candidate).block_size == 0) return candidate;
  return DType::kF16;
}

bool dtype_has_codec(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K: return true;
    default: return false;
  }
}

float largest_value(DType type) {
  switch (type) {
    case DType::kF16: return kLargestF16;
    case DType::kBF16: return 3.38953139e38f;
    case DType::kQ8_0: return kLargestF16 * 127;
    case DType::kQ4_0: return kLargestF16 * 8;
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
    default: fail_type(type);
  }
}

}  // namespace hotset
