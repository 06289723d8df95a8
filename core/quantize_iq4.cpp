// IQ4_NL and IQ4_XS: value = scale * v, v one of 16 values that are closer together near 0. IQ4_NL has an f16 scale per
// 32 elements; in IQ4_XS it is d * c, with c of 6 bits and a sign, d of 256 elements.
//
// The search. Per 32 elements: the element of the largest magnitude becomes about the least or the largest value, a few
// ways each, with the least-squares scale of what that assigns; then the best scale assigns once more.
#include <initializer_list>

#include "core/quantize_k.h"
#include "core/unpacked_block.h"

namespace hotset {
namespace {

using block_format::kIq4Values;

constexpr int kLength = 32, kValues = 16;
constexpr int kWays = 9;
constexpr int kLanes = 8;  // element i belongs to lane i % kLanes, so that a block fills vectors

// The numbers of the nearest values to x * inverse; ties go to the smaller value.
void assign(const float* x, float inverse, int32_t* code) {
  for (int i = 0; i < kLength; ++i) code[i] = 0;
  for (int value = 1; value < kValues; ++value) {
    const float middle = 0.5f * static_cast<float>(kIq4Values[value - 1] + kIq4Values[value]);
    for (int i = 0; i < kLength; ++i) code[i] += x[i] * inverse > middle ? 1 : 0;
  }
}

// Weighted sums of v * v and v * x, and the scale that follows.
struct Fit {
  float vv = 0, vx = 0;
  float scale() const { return vx * inverse_or_zero(vv); }
  float gain() const { return vx * scale(); }  // what it takes off the error of all zeros
};

// Large elements matter more: a squared error weighs as much as in Q4_K (core/quantize_affine.cpp).
Fit fit(const float* x, const int32_t* code) {
  float xx[kLanes]{}, vv[kLanes]{}, vx[kLanes]{}, sum = 0;
  for (int i = 0; i < kLength; ++i) xx[i % kLanes] += x[i] * x[i];
  for (const float each : xx) sum += each;
  const float base = 3 * std::sqrt(sum / kLength);
  for (int i = 0; i < kLength; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float v = static_cast<float>(kIq4Values[code[i + lane]]), weight = base + std::fabs(x[i + lane]);
      vv[lane] += weight * v * v;
      vx[lane] += weight * v * x[i + lane];
    }
  }
  Fit out;
  for (int lane = 0; lane < kLanes; ++lane) out.vv += vv[lane], out.vx += vx[lane];
  return out;
}

float best_scale(const float* x) {
  float most = 0;
  for (int i = 0; i < kLength; ++i) most = std::fabs(x[i]) > std::fabs(most) ? x[i] : most;
  int32_t code[kLength];
  Fit best;
  const auto keep_better = [&](float inverse) {
    assign(x, inverse, code);
    const Fit each = fit(x, code);
    if (each.gain() > best.gain()) best = each;
  };
  for (const int end : {0, kValues - 1})
    for (int way = 0; way < kWays; ++way) {
      const float stretch = 1 + 0.02f * static_cast<float>(way - kWays / 2);
      keep_better(static_cast<float>(kIq4Values[end]) * stretch * inverse_or_zero(most));
    }
  keep_better(inverse_or_zero(best.scale()));
  return best.scale();
}

void store_codes(const int32_t* code, std::byte* out) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<std::byte>(code[i] | code[i + 16] << 4);
}

}  // namespace

void quantize_iq4_nl(const float* x, std::byte* out) {
  const float scale = through_f16(best_scale(x));
  int32_t code[kLength];
  assign(x, inverse_or_zero(scale), code);
  store_u16(f32_to_f16(scale), out);
  store_codes(code, out + 2);
}

void quantize_iq4_xs(const float* x, std::byte* out) {
  constexpr int kBlocks = block_format::IQ4_XS::kBlocks;
  constexpr float kLeastC = -32, kMostC = 31;
  float scale[kBlocks], most = 0;  // of the scales, with its sign, which becomes -32
  for (int b = 0; b < kBlocks; ++b) {
    scale[b] = best_scale(x + b * kLength);
    most = std::fabs(scale[b]) > std::fabs(most) ? scale[b] : most;
  }
  float d = through_f16(most / kLeastC), c[kBlocks];
  int32_t code[kBlocks * kLength];
  const auto assign_all = [&] {
    for (int b = 0; b < kBlocks; ++b) assign(x + b * kLength, inverse_or_zero(d * c[b]), code + b * kLength);
  };
  for (int b = 0; b < kBlocks; ++b) c[b] = round_within(scale[b] * inverse_or_zero(d), kLeastC, kMostC);
  assign_all();
  double aa = 0, ax = 0;  // the least-squares d for x = d * a with a = c * v
  for (int b = 0; b < kBlocks; ++b) {
    const Fit each = fit(x + b * kLength, code + b * kLength);
    aa += static_cast<double>(c[b]) * c[b] * each.vv;
    ax += static_cast<double>(c[b]) * each.vx;
  }
  if (aa > 0) d = through_f16(static_cast<float>(ax / aa));
  assign_all();
  std::memset(out, 0, block_format::IQ4_XS::kQAt);
  store_u16(f32_to_f16(d), out);
  for (int b = 0; b < kBlocks; ++b) {
    const int bits = static_cast<int>(c[b] - kLeastC);
    out[2 + b / 4] |= static_cast<std::byte>(bits >> 4 << b % 4 * 2);
    out[4 + b / 2] |= static_cast<std::byte>((bits & 15) << b % 2 * 4);
    store_codes(code + b * kLength, out + block_format::IQ4_XS::kQAt + 16 * b);
  }
}

}  // namespace hotset
