// Q6_K and Q3_K: 16 sub-blocks of 16, value = d * scale * q, with scale and q of 8 and 6 bits, or 6 and 3, with a sign.
//
// The search. Per sub-block: a few spacings of the grid, each with the least-squares scale of what it assigns. Then
// scales are rounded to 8 bits, and d is fitted again to what that made of them. All elements weigh the same: weights
// of x^2 made the KL divergence of the packaged model's logits 5 to 7 % larger.
#include "core/quantize_k.h"
#include "core/unpacked_block.h"

namespace hotset {
namespace {

constexpr int kLanes = 16, kLength = 16, kSuper = kLanes * kLength;
constexpr int kSpacings = 19;

// The least values of q and of a scale; the largest are one less than their negatives.
struct Q6Grid {
  static constexpr float kLeastQ = -32, kLeastScale = -128;
};
struct Q3Grid {
  static constexpr float kLeastQ = -4, kLeastScale = -32;
};
template <class Grid>
float nearest_q(float x) {
  return round_within(x, Grid::kLeastQ, -Grid::kLeastQ - 1);
}
template <class Grid>
float nearest_scale(float x) {
  return round_within(x, Grid::kLeastScale, -Grid::kLeastScale - 1);
}

using Block = TurnedBlock<kLength, kLanes>;

// Per sub-block the scale in x = scale * q, and what it takes off the error of all zeros.
struct Scales {
  float scale[kLanes]{}, gain[kLanes]{};
};

// Tries q = round(x * inverse) and takes its least-squares scale for the lanes where it is better than what is there.
template <class Grid>
void keep_better(const Block& block, const float* inverse, Scales& best) {
  float qq[kLanes]{}, qx[kLanes]{};
  for (int i = 0; i < kLength; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float x = block.x[i][lane];
      const float q = nearest_q<Grid>(x * inverse[lane]);
      qq[lane] += q * q;
      qx[lane] += q * x;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const float scale = qx[lane] * inverse_or_zero(qq[lane]);
    const float gain = scale * qx[lane];
    const bool better = gain > best.gain[lane];
    best.scale[lane] = better ? scale : best.scale[lane];
    best.gain[lane] = better ? gain : best.gain[lane];
  }
}

// The element of the largest magnitude of each sub-block becomes about the least q, as that end reaches further.
template <class Grid>
Scales fit_scales(const Block& block) {
  float most[kLanes]{}, inverse[kLanes];
  for (int i = 0; i < kLength; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      most[lane] = std::fabs(block.x[i][lane]) > std::fabs(most[lane]) ? block.x[i][lane] : most[lane];
  Scales best;
  for (int spacing = 0; spacing < kSpacings; ++spacing) {
    const float steps = Grid::kLeastQ + 0.1f * static_cast<float>(spacing - kSpacings / 2);
    for (int lane = 0; lane < kLanes; ++lane) inverse[lane] = steps * inverse_or_zero(most[lane]);
    keep_better<Grid>(block, inverse, best);
  }
  return best;
}

// What is stored; d as it will be read.
struct Code {
  float d = 0;
  float scale[kLanes];
  float q[kLength][kLanes];
};

template <class Grid>
void assign(const Block& block, Code& code) {
  float inverse[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) inverse[lane] = inverse_or_zero(code.d * code.scale[lane]);
  for (int i = 0; i < kLength; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      code.q[i][lane] = nearest_q<Grid>(block.x[i][lane] * inverse[lane]);
}

// The least-squares d for x = d * a with a = scale * q.
void refit(const Block& block, Code& code) {
  float aa[kLanes]{}, ax[kLanes]{};
  for (int i = 0; i < kLength; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float x = block.x[i][lane];
      const float a = code.scale[lane] * code.q[i][lane];
      aa[lane] += a * a;
      ax[lane] += a * x;
    }
  }
  double sum_aa = 0, sum_ax = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    sum_aa += aa[lane];
    sum_ax += ax[lane];
  }
  if (sum_aa > 0) code.d = through_f16(static_cast<float>(sum_ax / sum_aa));
}

template <class Grid>
Code encode(const float* x) {
  const Block block(x);
  const Scales scales = fit_scales<Grid>(block);
  float most = 0;  // of the scales, with its sign, which becomes the least
  for (int lane = 0; lane < kLanes; ++lane)
    most = std::fabs(scales.scale[lane]) > std::fabs(most) ? scales.scale[lane] : most;
  Code code;
  code.d = through_f16(most / Grid::kLeastScale);
  for (int lane = 0; lane < kLanes; ++lane)
    code.scale[lane] = nearest_scale<Grid>(scales.scale[lane] * inverse_or_zero(code.d));
  assign<Grid>(block, code);
  refit(block, code);
  assign<Grid>(block, code);
  return code;
}

// q less the least one, of all elements in order.
template <class Grid>
void unsigned_q(const Code& code, uint8_t* q) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < kLength; ++i)
      q[lane * kLength + i] = static_cast<uint8_t>(code.q[i][lane] - Grid::kLeastQ);
}

constexpr int kHighAt = 128, kScaleAt = 192, kDAt = 208;  // bytes of Q6_K; the low nibbles come first

}  // namespace

void quantize_q6_k(const float* x, std::byte* out) {
  const Code code = encode<Q6Grid>(x);
  uint8_t q[kSuper];
  unsigned_q<Q6Grid>(code, q);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* from = q + kSuper / 2 * half;
    for (int i = 0; i < 64; ++i) out[64 * half + i] = static_cast<std::byte>((from[i] & 15) | (from[i + 64] & 15) << 4);
    for (int i = 0; i < 32; ++i)
      out[kHighAt + 32 * half + i] = static_cast<std::byte>(from[i] >> 4 | from[i + 32] >> 4 << 2 |
                                                            from[i + 64] >> 4 << 4 | from[i + 96] >> 4 << 6);
  }
  for (int lane = 0; lane < kLanes; ++lane)
    out[kScaleAt + lane] = static_cast<std::byte>(static_cast<int8_t>(code.scale[lane]));
  store_u16(f32_to_f16(code.d), out + kDAt);
}

void dequantize_q6_k(const std::byte* block, float* out) {
  const float d = f16_to_f32(load_u16(block + kDAt));
  for (int lane = 0; lane < kLanes; ++lane) {
    const float scale = d * static_cast<float>(std::to_integer<int8_t>(block[kScaleAt + lane]));
    for (int at = lane * kLength; at < (lane + 1) * kLength; ++at) {
      const int half = at / 128, within = at % 128;
      const int low = std::to_integer<int>(block[64 * half + within % 64] >> (within / 64 * 4)) & 15;
      const int high = std::to_integer<int>(block[kHighAt + 32 * half + within % 32] >> (within / 32 * 2)) & 3;
      out[at] = scale * static_cast<float>((low | high << 4) - 32);
    }
  }
}

void quantize_q3_k(const float* x, std::byte* out) {
  using Format = block_format::Q3_K;
  const Code code = encode<Q3Grid>(x);
  uint8_t q[kSuper];
  unsigned_q<Q3Grid>(code, q);
  std::memset(out, 0, Format::kBytes);
  for (int i = 0; i < kSuper; ++i) {
    out[i % 32] |= static_cast<std::byte>(q[i] >> 2 << i / 32);
    out[Format::kQAt + i / 128 * 32 + i % 32] |= static_cast<std::byte>((q[i] & 3) << i % 128 / 32 * 2);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int scale = static_cast<int>(code.scale[lane] - Q3Grid::kLeastScale);
    out[Format::kScalesAt + lane % 8] |= static_cast<std::byte>((scale & 15) << lane / 8 * 4);
    out[Format::kScalesAt + 8 + lane % 4] |= static_cast<std::byte>(scale >> 4 << lane / 4 * 2);
  }
  store_u16(f32_to_f16(code.d), out + Format::kDAt);
}

}  // namespace hotset
