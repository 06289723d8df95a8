#include "cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "core/bit_planes.h"
#include "cpu/unpacked_format.h"

namespace hotset::cpu::reference {
namespace {

template <class T>
T read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

int64_t unit_of(const RowSumArgs& args, int64_t i) {
  return args.list != nullptr ? args.list[i] : args.first_unit + i;
}

// A weight of a block type: scale * q - minimum.
struct Parts {
  double scale;
  int q;
  double minimum = 0.0;
  double value() const { return scale * q - minimum; }
};

// Element i of a super-block of Q4_K or, with a fifth bit, Q5_K: f16 d and dmin, 8 scales and 8 minima of 6 bits in 12
// bytes, then (Q5_K) 32 bytes of fifth bits, then 128 bytes of nibbles.
Parts k_weight_at(const std::byte* super, int i, bool fifth_bit) {
  const auto byte = [&](int at) { return static_cast<int>(super[at]); };
  const int block = i / 32, packed = 4;
  int scale = byte(packed + block % 4) % 64;
  int minimum = byte(packed + 4 + block % 4) % 64;
  if (block >= 4) {
    scale = byte(packed + 8 + block - 4) % 16 + byte(packed + block - 4) / 64 * 16;
    minimum = byte(packed + 8 + block - 4) / 16 + byte(packed + block) / 64 * 16;
  }
  const int both = byte((fifth_bit ? 48 : 16) + block / 2 * 32 + i % 32);
  int q = block % 2 == 0 ? both % 16 : both / 16;
  if (fifth_bit) q += 16 * (byte(16 + i % 32) >> block & 1);
  return {f16_value(read<uint16_t>(super)) * scale, q, f16_value(read<uint16_t>(super + 2)) * minimum};
}

// Element i of a super-block of Q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, f16 d.
Parts q6_k_weight_at(const std::byte* super, int i) {
  const int half = i / 128, quarter = i % 128 / 32, at = i % 32;
  const int both = static_cast<int>(super[64 * half + 32 * (quarter % 2) + at]);
  const int low = quarter < 2 ? both % 16 : both / 16;
  const int high = static_cast<int>(super[128 + 32 * half + at]) >> (2 * quarter) & 3;
  const int scale = read<int8_t>(super + 192 + i / 16);
  return {f16_value(read<uint16_t>(super + 208)) * scale, low + 16 * high - 32};
}

// A weight of the types of core/unpacked_block.h, which is plain itself.
Parts unpacked_weight_at(WeightType wanted, const std::byte* row, int64_t i) {
  Parts out{};
  for_unpacked_formats([&]<WeightType type, class Format>() {
    if (type != wanted) return;
    UnpackedBlock block;
    unpack_block(Format{}, row, i / kBlock, block);
    const auto in_block = static_cast<size_t>(i % kBlock), half = in_block / 16;
    const double scale = static_cast<double>(block.d) * block.c[half];
    out = {scale, block.q[in_block], static_cast<double>(block.m) * block.k[half]};
  });
  return out;
}

Parts weight_parts(WeightType type, const std::byte* row, int64_t i) {
  const int in_super = static_cast<int>(i % kSuperBlock), in_block = static_cast<int>(i % kBlock);
  switch (type) {
    case kWeightQ8_0: {
      const std::byte* block = row + i / kBlock * 34;
      return {f16_value(read<uint16_t>(block)), read<int8_t>(block + 2 + in_block)};
    }
    case kWeightQ4_K: return k_weight_at(row + i / kSuperBlock * 144, in_super, false);
    case kWeightQ5_K: return k_weight_at(row + i / kSuperBlock * 176, in_super, true);
    case kWeightQ6_K: return q6_k_weight_at(row + i / kSuperBlock * 210, in_super);
    case kWeightQ4_0: {
      const std::byte* block = row + i / kBlock * 18;
      const int both = read<uint8_t>(block + 2 + in_block % 16);
      return {f16_value(read<uint16_t>(block)), (in_block < 16 ? both % 16 : both / 16) - 8};
    }
    default: return unpacked_weight_at(type, row, i);
  }
}

// h * scale as an integer of a sum; nothing when it is too large, or no number.
std::optional<int64_t> in_sum(float h, double scale) {
  const float product = static_cast<float>(static_cast<double>(h) * scale);  // exact before it is rounded to float
  if (!(std::fabs(product) < 32768.0f)) return {};
  return static_cast<int64_t>(std::nearbyint(std::ldexp(static_cast<double>(product), 36)));
}

// A row's columns [first, end), of blocks first a multiple of 32, as what a sum needs of them.
std::vector<Parts> row_parts(WeightType type, const std::byte* row, int64_t first, int64_t end) {
  std::vector<Parts> out;
  for (int64_t i = first; i < end; ++i)
    out.push_back(is_block_type(type) ? weight_parts(type, row, i) : Parts{weight_at(type, row, i), 1});
  return out;
}

// What h times column i of `parts` adds to a sum; nothing when it poisons the sum.
std::optional<int64_t> contribution(WeightType type, const std::vector<Parts>& parts, int64_t i, float h) {
  if (h == 0.0f) return 0;
  const auto at = [&](int64_t column) -> const Parts& { return parts[static_cast<size_t>(column)]; };
  if (!is_block_type(type)) {
    const double whole = std::floor(std::ldexp(static_cast<double>(h) * at(i).scale, 36));
    if (!(whole >= -0x1p51 && whole < 0x1p51)) return {};
    return static_cast<int64_t>(whole);
  }
  for (int64_t j = i / kBlock * kBlock; j < i / kBlock * kBlock + kBlock; j += 16)
    if (!in_sum(h, at(j).scale) || !in_sum(h, at(j).minimum)) return {};
  return *in_sum(h, at(i).scale) * at(i).q - *in_sum(h, at(i).minimum);
}

}  // namespace

double f16_value(uint16_t half) {
  const double sign = (half & 0x8000) ? -1.0 : 1.0;
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

uint16_t f16_nearest(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return sign | 0x7e00;
  const double size = std::fabs(x);
  if (size == 0.0) return sign;
  if (size >= 65520.0) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(size, &exponent);  // size in [2^(exponent - 1), 2^exponent)
  const int unit = std::max(exponent - 11, -24);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, -unit)));  // even on ties, by the default mode
  // Halves of one sign are counted in order of size, 1024 to each power of two, so a carry needs no extra care.
  return static_cast<uint16_t>(sign | ((unit + 24) * 1024 + steps));
}

size_t row_bytes(WeightType type, int64_t n) {
  switch (type) {
    case kWeightF32:
      return static_cast<size_t>(n) * 4;
    case kWeightQ8_0:
      return static_cast<size_t>(n / kBlock) * 34;
    case kWeightQ4_0:
      return static_cast<size_t>(n / kBlock) * 18;
    case kWeightQ4_K:
      return static_cast<size_t>(n / kSuperBlock) * 144;
    case kWeightQ5_K:
      return static_cast<size_t>(n / kSuperBlock) * 176;
    case kWeightQ6_K:
      return static_cast<size_t>(n / kSuperBlock) * 210;
    case kWeightF16:
    case kWeightBF16:
      return static_cast<size_t>(n) * 2;
    default: {
      size_t out = 0;
      for_unpacked_formats([&]<WeightType each, class Format>() {
        if (each == type) out = static_cast<size_t>(n / row_multiple(type)) * Format::kBytes;
      });
      return out;
    }
  }
}

double weight_at(WeightType type, const std::byte* row, int64_t i) {
  switch (type) {
    case kWeightF32:
      return read<float>(row + i * 4);
    case kWeightF16:
      return f16_value(read<uint16_t>(row + i * 2));
    case kWeightBF16: {
      const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(row + i * 2)) << 16;
      return read<float>(reinterpret_cast<const std::byte*>(&bits));
    }
    default: return weight_parts(type, row, i).value();
  }
}

double activation_at(WeightType type, const ActivationRow& a, int64_t i) {
  return is_block_type(type) ? static_cast<double>(a.scale[i / kBlock]) * a.q[i] : static_cast<double>(a.f32[i]);
}

double dot(WeightType type, const std::byte* row, int64_t n, const ActivationRow& a) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += weight_at(type, row, i) * activation_at(type, a, i);
  return sum;
}

double dot_magnitude(WeightType type, const std::byte* row, int64_t n, const ActivationRow& a) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += std::fabs(weight_at(type, row, i) * activation_at(type, a, i));
  return sum;
}

double plane_dot(const std::byte* row, int n_bits, int64_t n, const ActivationRow& a) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += plane_code(row, n_bits, i) * activation_at(kWeightQ8_0, a, i);
  return sum;
}

void row_sum(WeightType type, const RowSumArgs& args, int64_t* sums) {
  for (int64_t i = 0; i < args.n_units; ++i) {
    const std::byte* row = args.w.data + static_cast<size_t>(unit_of(args, i)) * args.w.stride;
    const std::vector<Parts> parts = row_parts(type, row, args.first_col, args.first_col + args.n_cols);
    for (int64_t a = 0; a < args.n_acts; ++a)
      for (int64_t c = 0; c < args.n_cols; ++c) {
        int64_t& sum = sums[a * args.n_cols + c];
        const auto by = contribution(type, parts, c, args.h[a * args.h_stride + i]);
        if (!by || sum == INT64_MIN)
          sum = INT64_MIN;
        else
          sum = static_cast<int64_t>(static_cast<uint64_t>(sum) + static_cast<uint64_t>(*by));
      }
  }
}

void quantize_activation(const float* x, int64_t n, int8_t* q, double* scale, int32_t* sum) {
  for (int64_t b = 0; b < n / kBlock; ++b) {
    double largest = 0.0;
    for (int64_t i = 0; i < kBlock; ++i)
      largest = std::max(largest, std::fabs(static_cast<double>(x[b * kBlock + i])));
    scale[b] = largest / 127.0;
    sum[b] = 0;
    for (int64_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
      q[i] = largest == 0.0 ? int8_t{0} : static_cast<int8_t>(std::nearbyint(x[i] * (127.0 / largest)));
      sum[b] += q[i];
    }
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, double* out) {
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, double* out) {
  double mean = 0.0, squares = 0.0;
  for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(x[i]) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i)
    out[i] = (x[i] - mean) * inverse * weight[i] + (bias != nullptr ? static_cast<double>(bias[i]) : 0.0);
}

void rope(double* x, int64_t n_rot, bool interleaved, const float* cos, const float* sin) {
  for (int64_t i = 0; i < n_rot / 2; ++i) {
    double& x0 = interleaved ? x[2 * i] : x[i];
    double& x1 = interleaved ? x[2 * i + 1] : x[i + n_rot / 2];
    const double old0 = x0;
    x0 = old0 * cos[i] - x1 * sin[i];
    x1 = old0 * sin[i] + x1 * cos[i];
  }
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }

double relu(double x) { return x > 0.0 ? x : 0.0; }

double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }

double gelu_tanh(double x) {
  const double pi = std::acos(-1.0);
  // x / 2 * (1 + tanh(u)) where nothing cancels.
  return x / (1.0 + std::exp(-2.0 * std::sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)));
}

double soft_cap(double x, double cap) { return cap * std::tanh(x / cap); }

void attend(const AttendArgs& args, double* m, double* l, double* o) {
  const WeightType type = args.kv_type;
  const auto element = [&](const std::byte* const* pages, int64_t t, int64_t d) {
    return weight_at(type, pages[t / kPagePositions], t % kPagePositions * args.head_dim + d);
  };
  for (int64_t i = 0; i < args.n_q; ++i) {
    std::vector<double> s;
    m[i] = -HUGE_VAL;
    for (int64_t t = args.begin[i]; t < args.end[i]; ++t) {
      double score = 0.0;
      for (int64_t d = 0; d < args.head_dim; ++d) score += args.q[i][d] * element(args.k_pages, t, d);
      score *= args.scale;
      if (args.softcap != 0.0f) score = soft_cap(score, args.softcap);
      s.push_back(score);
      m[i] = std::max(m[i], score);
    }
    l[i] = 0.0;
    for (int64_t d = 0; d < args.head_dim; ++d) o[i * args.head_dim + d] = 0.0;
    for (size_t j = 0; j < s.size(); ++j) {
      const double p = std::exp(s[j] - m[i]);
      l[i] += p;
      for (int64_t d = 0; d < args.head_dim; ++d)
        o[i * args.head_dim + d] += p * element(args.v_pages, args.begin[i] + static_cast<int64_t>(j), d);
    }
  }
}

}  // namespace hotset::cpu::reference
