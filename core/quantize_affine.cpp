// Q4_K and Q5_K: 8 sub-blocks of 32, value = d * scale * q - dmin * min, scale and min of 6 bits per sub-block. Q2_K:
// the same with 16 sub-blocks of 16, and 4 bits.
//
// The search. Per sub-block: a few spacings of the grid from the smallest to the largest element, each with the
// least-squares line through what it assigns; then the best line assigns again, twice. Then scales and mins are rounded
// to 6 or 4 bits, and d and dmin are fitted again to what that made of them, twice.
#include "core/quantize_k.h"
#include "core/unpacked_block.h"

namespace hotset {
namespace {

constexpr int kSpacings = 11, kReassignments = 2, kRefits = 2;
constexpr int kHeadBytes = 16;  // Q4_K, Q5_K: d, dmin, 12 bytes of scales and mins

// Sub-blocks, elements of each, the largest q and the largest scale or min.
template <int kLanesOf, int kLengthOf, int kMaxQOf, int kMaxScaleOf>
struct Grid {
  static constexpr int kLanes = kLanesOf, kLength = kLengthOf;
  static constexpr float kMaxQ = kMaxQOf, kMaxScale = kMaxScaleOf;
};
using Q2Grid = Grid<16, 16, 3, 15>;
using Q4Grid = Grid<8, 32, 15, 63>;
using Q5Grid = Grid<8, 32, 31, 63>;

// `weight` says how much an element's squared error counts.
template <class G>
struct Block : TurnedBlock<G::kLength, G::kLanes> {
  using TurnedBlock<G::kLength, G::kLanes>::TurnedBlock;
  float weight[G::kLength][G::kLanes];
};

// Large elements matter more, because large weights carry most of a sum. Of the weights tried (none; |x| plus 0.3, 1 or
// 3 times the root mean square) this gave the least KL divergence of the packaged model's logits: 0.0290 for Q4_K on
// the wiki text, against 0.0297, 0.0312 and 0.0296.
template <class G>
void weigh(Block<G>& block) {
  for (int lane = 0; lane < G::kLanes; ++lane) {
    float sum = 0;
    for (int i = 0; i < G::kLength; ++i) sum += block.x[i][lane] * block.x[i][lane];
    const float rms = std::sqrt(sum / G::kLength);
    for (int i = 0; i < G::kLength; ++i) block.weight[i][lane] = 3 * rms + std::fabs(block.x[i][lane]);
  }
}

// Per sub-block the line x = scale * q + min with min <= 0 <= scale, and what it takes off the error of all zeros.
template <class G>
struct Lines {
  float scale[G::kLanes]{}, min[G::kLanes]{}, gain[G::kLanes]{};
};

// Weighted sums of products, from which least-squares lines follow.
template <class G>
struct Moments {
  float one[G::kLanes]{}, x[G::kLanes]{}, q[G::kLanes]{}, qq[G::kLanes]{}, qx[G::kLanes]{};
};

// Moments of the assignment q = round((x - low) * inverse).
template <class G>
Moments<G> moments_of(const Block<G>& block, const float* inverse, const float* low) {
  Moments<G> sums;
  for (int i = 0; i < G::kLength; ++i) {
    for (int lane = 0; lane < G::kLanes; ++lane) {
      const float x = block.x[i][lane], weight = block.weight[i][lane];
      const float q = round_within((x - low[lane]) * inverse[lane], 0, G::kMaxQ);
      sums.one[lane] += weight;
      sums.x[lane] += weight * x;
      sums.q[lane] += weight * q;
      sums.qq[lane] += weight * q * q;
      sums.qx[lane] += weight * q * x;
    }
  }
  return sums;
}

// Takes the least-squares line of an assignment for the lanes where it is better than what is there.
template <class G>
void keep_better(const Moments<G>& sums, Lines<G>& best) {
  for (int lane = 0; lane < G::kLanes; ++lane) {
    const float one = sums.one[lane], x = sums.x[lane], q = sums.q[lane], qq = sums.qq[lane], qx = sums.qx[lane];
    const float over = inverse_or_zero(one * qq - q * q);
    const float free_min = (qq * x - q * qx) * over;
    const float free_scale = (one * qx - q * x) * over;
    const float origin_scale = qx * inverse_or_zero(qq);  // of the line through 0, the best where min would be positive
    const float min = free_min < 0 ? free_min : 0;
    const float scale = free_min < 0 ? free_scale : origin_scale;
    const float gain = scale * qx + min * x;
    const bool better = (scale >= 0) & (gain > best.gain[lane]);
    best.scale[lane] = better ? scale : best.scale[lane];
    best.min[lane] = better ? min : best.min[lane];
    best.gain[lane] = better ? gain : best.gain[lane];
  }
}

template <class G>
Lines<G> fit_lines(const Block<G>& block) {
  float low[G::kLanes]{}, high[G::kLanes]{}, inverse[G::kLanes];  // 0 lies within the grid
  for (int i = 0; i < G::kLength; ++i) {
    for (int lane = 0; lane < G::kLanes; ++lane) {
      low[lane] = block.x[i][lane] < low[lane] ? block.x[i][lane] : low[lane];
      high[lane] = block.x[i][lane] > high[lane] ? block.x[i][lane] : high[lane];
    }
  }
  Lines<G> best;
  for (int spacing = 0; spacing < kSpacings; ++spacing) {
    const float steps = G::kMaxQ - 1 + 2.0f * static_cast<float>(spacing) / (kSpacings - 1);
    for (int lane = 0; lane < G::kLanes; ++lane) inverse[lane] = steps * inverse_or_zero(high[lane] - low[lane]);
    keep_better(moments_of<G>(block, inverse, low), best);
  }
  for (int round = 0; round < kReassignments; ++round) {
    for (int lane = 0; lane < G::kLanes; ++lane) inverse[lane] = inverse_or_zero(best.scale[lane]);
    keep_better(moments_of<G>(block, inverse, best.min), best);
  }
  return best;
}

// What is stored; d and dmin as they will be read.
template <class G>
struct Code {
  float d = 0, dmin = 0;
  float scale[G::kLanes], min[G::kLanes];
  float q[G::kLength][G::kLanes];
};

template <class G>
void assign(const Block<G>& block, Code<G>& code) {
  float inverse[G::kLanes], low[G::kLanes];
  for (int lane = 0; lane < G::kLanes; ++lane) {
    inverse[lane] = inverse_or_zero(code.d * code.scale[lane]);
    low[lane] = -code.dmin * code.min[lane];
  }
  for (int i = 0; i < G::kLength; ++i)
    for (int lane = 0; lane < G::kLanes; ++lane)
      code.q[i][lane] = round_within((block.x[i][lane] - low[lane]) * inverse[lane], 0, G::kMaxQ);
}

template <class G>
double sum_of(const float* lanes) {
  double sum = 0;
  for (int lane = 0; lane < G::kLanes; ++lane) sum += lanes[lane];
  return sum;
}

// The least-squares d and dmin for x = d * a - dmin * b, where a = scale * q and b = min.
template <class G>
void refit(const Block<G>& block, Code<G>& code) {
  float aa[G::kLanes]{}, ab[G::kLanes]{}, bb[G::kLanes]{}, ax[G::kLanes]{}, bx[G::kLanes]{};
  for (int i = 0; i < G::kLength; ++i) {
    for (int lane = 0; lane < G::kLanes; ++lane) {
      const float x = block.x[i][lane], weight = block.weight[i][lane];
      const float a = code.scale[lane] * code.q[i][lane], b = code.min[lane];
      aa[lane] += weight * a * a;
      ab[lane] += weight * a * b;
      bb[lane] += weight * b * b;
      ax[lane] += weight * a * x;
      bx[lane] += weight * b * x;
    }
  }
  const double saa = sum_of<G>(aa), sab = sum_of<G>(ab), sbb = sum_of<G>(bb), sax = sum_of<G>(ax), sbx = sum_of<G>(bx);
  const double determinant = saa * sbb - sab * sab;
  const bool both = determinant > 1e-6 * saa * sbb;  // else all minimums are 0, or a and b are the same
  const double d = both ? (sax * sbb - sbx * sab) / determinant : sax / saa;
  const double dmin = both ? (sax * sab - sbx * saa) / determinant : 0;
  if (!(d > 0) || !(dmin >= 0)) return;
  code.d = through_f16(static_cast<float>(d));
  code.dmin = through_f16(static_cast<float>(dmin));
}

template <class G>
Code<G> encode(const float* x) {
  Block<G> block(x);
  weigh(block);
  const Lines<G> lines = fit_lines<G>(block);
  float most_scale = 0, most_min = 0;
  for (int lane = 0; lane < G::kLanes; ++lane) {
    most_scale = lines.scale[lane] > most_scale ? lines.scale[lane] : most_scale;
    most_min = -lines.min[lane] > most_min ? -lines.min[lane] : most_min;
  }
  Code<G> code;
  code.d = through_f16(most_scale / G::kMaxScale);
  code.dmin = through_f16(most_min / G::kMaxScale);
  for (int lane = 0; lane < G::kLanes; ++lane) {
    code.scale[lane] = round_within(lines.scale[lane] * inverse_or_zero(code.d), 0, G::kMaxScale);
    code.min[lane] = round_within(-lines.min[lane] * inverse_or_zero(code.dmin), 0, G::kMaxScale);
  }
  assign<G>(block, code);
  for (int round = 0; round < kRefits; ++round) {
    refit(block, code);
    assign<G>(block, code);
  }
  return code;
}

constexpr int kLanes = 8, kLength = 32;  // of Q4_K and Q5_K

// Sub-blocks 0..3 have their 6 bits in one byte, whose upper two bits belong to 4..7.
template <class G>
void store_head(const Code<G>& code, std::byte* out) {
  store_u16(f32_to_f16(code.d), out);
  store_u16(f32_to_f16(code.dmin), out + 2);
  for (int j = 0; j < 4; ++j) {
    const int scale = static_cast<int>(code.scale[j]), scale_4 = static_cast<int>(code.scale[j + 4]);
    const int min = static_cast<int>(code.min[j]), min_4 = static_cast<int>(code.min[j + 4]);
    out[4 + j] = static_cast<std::byte>(scale | scale_4 >> 4 << 6);
    out[8 + j] = static_cast<std::byte>(min | min_4 >> 4 << 6);
    out[12 + j] = static_cast<std::byte>((scale_4 & 15) | (min_4 & 15) << 4);
  }
}

// Low four bits of q: sub-blocks 2k and 2k + 1 share 32 bytes.
template <class G>
void store_nibbles(const Code<G>& code, std::byte* out) {
  for (int lane = 0; lane < kLanes; lane += 2) {
    for (int i = 0; i < kLength; ++i) {
      const int low = static_cast<int>(code.q[i][lane]) & 15, high = static_cast<int>(code.q[i][lane + 1]) & 15;
      out[lane / 2 * kLength + i] = static_cast<std::byte>(low | high << 4);
    }
  }
}

// Fifth bit of q: byte i has that of element i of each sub-block.
void store_fifth_bits(const Code<Q5Grid>& code, std::byte* out) {
  for (int i = 0; i < kLength; ++i) {
    int bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<int>(code.q[i][lane]) >> 4 << lane;
    out[i] = static_cast<std::byte>(bits);
  }
}

// What multiplies q and what is taken off, per sub-block.
struct Head {
  float scale[kLanes], min[kLanes];
};

Head load_head(const std::byte* block) {
  const float d = f16_to_f32(load_u16(block)), dmin = f16_to_f32(load_u16(block + 2));
  uint8_t bits[12];
  std::memcpy(bits, block + 4, sizeof bits);
  Head head;
  for (int j = 0; j < 4; ++j) {
    head.scale[j] = d * static_cast<float>(bits[j] & 63);
    head.min[j] = dmin * static_cast<float>(bits[4 + j] & 63);
    head.scale[j + 4] = d * static_cast<float>((bits[8 + j] & 15) | bits[j] >> 6 << 4);
    head.min[j + 4] = dmin * static_cast<float>(bits[8 + j] >> 4 | bits[4 + j] >> 6 << 4);
  }
  return head;
}

int nibble_of(const std::byte* nibbles, int lane, int i) {
  return std::to_integer<int>(nibbles[lane / 2 * kLength + i] >> (lane % 2 * 4)) & 15;
}

}  // namespace

void quantize_q4_k(const float* x, std::byte* out) {
  const Code<Q4Grid> code = encode<Q4Grid>(x);
  store_head(code, out);
  store_nibbles(code, out + kHeadBytes);
}

void quantize_q5_k(const float* x, std::byte* out) {
  const Code<Q5Grid> code = encode<Q5Grid>(x);
  store_head(code, out);
  store_fifth_bits(code, out + kHeadBytes);
  store_nibbles(code, out + kHeadBytes + kLength);
}

void dequantize_q4_k(const std::byte* block, float* out) {
  const Head head = load_head(block);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < kLength; ++i) {
      const int q = nibble_of(block + kHeadBytes, lane, i);
      out[lane * kLength + i] = head.scale[lane] * static_cast<float>(q) - head.min[lane];
    }
  }
}

void dequantize_q5_k(const std::byte* block, float* out) {
  const Head head = load_head(block);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < kLength; ++i) {
      const int fifth = std::to_integer<int>(block[kHeadBytes + i] >> lane) & 1;
      const int q = nibble_of(block + kHeadBytes + kLength, lane, i) | fifth << 4;
      out[lane * kLength + i] = head.scale[lane] * static_cast<float>(q) - head.min[lane];
    }
  }
}

void quantize_q2_k(const float* x, std::byte* out) {
  using Format = block_format::Q2_K;
  const Code<Q2Grid> code = encode<Q2Grid>(x);
  std::memset(out, 0, Format::kBytes);
  for (int lane = 0; lane < Q2Grid::kLanes; ++lane) {
    out[lane] = static_cast<std::byte>(static_cast<int>(code.scale[lane]) | static_cast<int>(code.min[lane]) << 4);
    for (int i = 0; i < Q2Grid::kLength; ++i) {
      const int at = lane * Q2Grid::kLength + i;
      out[Format::kQAt + at / 128 * 32 + at % 32] |=
          static_cast<std::byte>(static_cast<int>(code.q[i][lane]) << at % 128 / 32 * 2);
    }
  }
  store_u16(f32_to_f16(code.d), out + Format::kDAt);
  store_u16(f32_to_f16(code.dmin), out + Format::kDAt + 2);
}

}  // namespace hotset
