// Scalar pieces of the canonical arithmetic (docs/ARCHITECTURE.md, "One arithmetic") for the device and, in tests and
// outlines, for the host. C++17; CUDA is not needed to compile it. Device code is compiled with -fmad=false.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/op.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define HS_DEVICE __host__ __device__
#else
#define HS_DEVICE
#endif

namespace hotset::cuda {

constexpr int kLanes = 16;             // partial sums of a dot
constexpr int64_t kBlock = 32;         // elements of a quantised block
constexpr int64_t kSuperBlock = 256;   // elements of a K super-block
constexpr float kLeastMax = 127.0f / 3.40282346e38f;  // below it 127 / max|x| overflows: the block counts as zero

HS_DEVICE inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
HS_DEVICE inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// a * b + c, rounded once.
HS_DEVICE inline float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

HS_DEVICE inline uint32_t bits_of(float x) {
  uint32_t out;
  memcpy(&out, &x, sizeof out);
  return out;
}
HS_DEVICE inline float float_of(uint32_t bits) {
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}
HS_DEVICE inline float not_a_number() { return float_of(0x7fc00000u); }
HS_DEVICE inline float infinity() { return float_of(0x7f800000u); }

HS_DEVICE inline float half_to_float(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(bits));
#else
  return f16_to_f32(bits);
#endif
}
HS_DEVICE inline uint16_t float_to_half(float x) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(x));
#else
  return f32_to_f16(x);
#endif
}

// The four signed bytes of `a` times those of `b`, added to `sum`.
HS_DEVICE inline int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), sum);
#else
  for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return sum;
#endif
}

// The lane tree over 16 partial sums; destroys them.
HS_DEVICE inline float lane_tree(float* lane) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

// x * 2^n in two steps, as exp_value needs it.
HS_DEVICE inline float scale_pow2(float x, float n) {
  const float round = 12582912.0f;
  const float half = (n * 0.5f + round) - round;
  const float bias = 8388608.0f + 127.0f;
  const float first = float_of(bits_of(half + bias) << 23), second = float_of(bits_of((n - half) + bias) << 23);
  return (x * first) * second;
}

// This and the functions of activations below: the operations of cpu/float_math.h.
// e^x.
HS_DEVICE inline float exp_value(float x) {
  x = -105.0f > x ? -105.0f : x;  // NaN passes through
  x = 89.0f < x ? 89.0f : x;
  const float round = 12582912.0f;
  const float n = fused(x, 0x1.715476p+0f, round) - round;
  float r = fused(n, -0x1.62e4p-1f, x);
  r = fused(n, -0x1.7f7d1cp-20f, r);
  float p = 0x1.6a2434p-10f;
  p = fused(p, r, 0x1.1239e2p-7f);
  p = fused(p, r, 0x1.5558f2p-5f);
  p = fused(p, r, 0x1.555492p-3f);
  p = fused(p, r, 0x1.fffffcp-2f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  return scale_pow2(p, n);
}

// exp of the C library, which merges chunks of attention. On the device it may differ from it in the last bit, seldom.
HS_DEVICE inline float library_exp(float x) {
#if defined(__CUDA_ARCH__)
  return static_cast<float>(exp(static_cast<double>(x)));
#else
  return std::exp(x);
#endif
}

HS_DEVICE inline float silu(float x) { return x / (1.0f + exp_value(0.0f - x)); }
HS_DEVICE inline float relu(float x) { return x > 0.0f ? x : 0.0f; }

// cap * tanh(x / cap).
HS_DEVICE inline float soft_capped(float x, float cap) {
  const float y = x / cap;
  return cap * (1.0f - 2.0f / (1.0f + exp_value(y + y)));
}

HS_DEVICE inline float gelu(float x) {
  const float negative = 0.0f - x, magnitude = negative > x ? negative : x;  // NaN passes through
  const float a = 20.0f < magnitude ? 20.0f : magnitude;
  const float t = 1.0f / fused(a, 0.35f, 1.0f);
  float p = -0x1.d37426p-6f;
  p = fused(p, t, 0x1.215362p-3f);
  p = fused(p, t, -0x1.00c15ap-2f);
  p = fused(p, t, 0x1.3bbb82p-3f);
  p = fused(p, t, -0x1.499bap-6f);
  p = fused(p, t, 0x1.abbc26p-4f);
  p = fused(p, t, 0x1.ebc5d6p-4f);
  p = fused(p, t, 0x1.1e625cp-3f);
  p = fused(p, t, 0x1.1df272p-3f);
  return relu(x) - a * ((p * t) * exp_value((a * a) * -0.5f));
}
HS_DEVICE inline float gelu_tanh(float x) {
  return x / (1.0f + exp_value(0.0f - x * fused(x * x, 0x1.2444f2p-4f, 0x1.988454p+0f)));
}

// An activation, and the threshold of kFatRelu.
struct ActivationRule {
  Activation kind = Activation::kRelu;
  float threshold = 0;
};

// act(x), of one product.
HS_DEVICE inline float activated_alone(const ActivationRule& rule, float x) {
  switch (rule.kind) {
    case Activation::kSilu: return silu(x);
    case Activation::kRelu2: return relu(x) * x;
    case Activation::kFatRelu: return x > 0.0f ? x + rule.threshold : 0.0f;
    case Activation::kGelu: return gelu(x);
    case Activation::kGeluTanh: return gelu_tanh(x);
    default: return relu(x);
  }
}

// act(gate) * up, or act(up) without a gate.
HS_DEVICE inline float activated(const ActivationRule& rule, bool has_gate, float gate, float up) {
  if (!has_gate) return activated_alone(rule, up);
  const float act = activated_alone(rule, gate);
  if (rule.kind == Activation::kDRelu) return act * relu(up);
  return (rule.kind == Activation::kRelu2 ? relu(act) : act) * up;  // a -0 becomes +0
}

// Sums of units: int64 in units of 2^-kSumBits; kNoSum stays that.
HS_DEVICE inline int64_t wrapped(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
HS_DEVICE inline int64_t merged(int64_t a, int64_t b) { return a == kNoSum || b == kNoSum ? kNoSum : wrapped(a, b); }
HS_DEVICE inline float sum_value(int64_t sum) {
  const float unit = 1.0f / static_cast<float>(int64_t{1} << kSumBits);
  return sum == kNoSum ? not_a_number() : static_cast<float>(sum) * unit;
}

// h * d as an integer of a sum, ties to even; false when it is too large, or no number.
HS_DEVICE inline bool to_sum(float h, float d, int64_t& out) {
  const float p = h * d;
  if (!(fabsf(p) < 32768.0f)) return false;
  const float scaled = p * 68719476736.0f;  // 2^kSumBits: exact
#if defined(__CUDA_ARCH__)
  out = __float2ll_rn(scaled);
#else
  out = std::llrint(scaled);
#endif
  return true;
}

// h * w rounded down to an integer of a sum; false when it is too large, or no number.
HS_DEVICE inline bool to_sum_down(float h, float w, int64_t& out) {
  const double exact = static_cast<double>(h) * 68719476736.0 * static_cast<double>(w);
  if (!(exact >= -0x1p51 && exact < 0x1p51)) return false;
  out = static_cast<int64_t>(floor(exact));
  return true;
}

// A block of 32 activations, of which n are there and the others 0, as 8-bit integers. Returns the scale; `sum` is q's.
HS_DEVICE inline float quantize_block(const float* at, int64_t n, int8_t* q, int32_t& sum) {
  uint32_t most = 0;  // magnitudes as integers order like floats, infinity and NaN last
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of(at[i]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  const float max = float_of(most);
  const bool finite = most < 0x7f800000u;
  sum = 0;
  if (!finite || max < kLeastMax) {
    for (int64_t i = 0; i < kBlock; ++i) q[i] = 0;
    return finite ? 0.0f : not_a_number();
  }
  const float inverse = 127.0f / max;
  for (int64_t i = 0; i < kBlock; ++i) {
    const float x = i < n ? at[i] : 0.0f;
    const int32_t value = static_cast<int32_t>(bits_of(x * inverse + 12582912.0f)) - 0x4b400000;
    q[i] = static_cast<int8_t>(value);
    sum += value;
  }
  return max / 127.0f;
}

// Adds to counters that several threads of the device, or one of the host, write.
template <class T>
HS_DEVICE inline void count(T* at, T n) {
#if defined(__CUDA_ARCH__)
  atomicAdd(at, n);
#else
  *at += n;
#endif
}

}  // namespace hotset::cuda
