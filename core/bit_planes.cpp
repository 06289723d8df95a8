#include "core/bit_planes.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace hotset {
namespace {

// Distance of the levels that fit normally distributed numbers of deviation 1 best (Max 1960, table II), by bits.
constexpr double kNormalStep[kMaxPlaneBits + 1] = {0, 1.5958, 0.9957, 0.5860};
// Codes follow from levels and levels from codes: each round fits both better. A third one gains less than 0.1 %.
constexpr int kRounds = 2;
// Below this distance its inverse may overflow: the row counts as constant.
constexpr double kLeastStep = 1e-30;

struct Levels {
  double low, step;
};

// Sums of 8 lanes: the compiler makes vectors of them, and their order is fixed.
constexpr int64_t kLanes = 8;
double total(const double* lanes) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// Sum of f(i) over i < n.
template <class F>
double sum_of(int64_t n, F f) {
  double lanes[kLanes] = {};
  int64_t at = 0;
  for (; at + kLanes <= n; at += kLanes)
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] += f(at + i);
  for (; at < n; ++at) lanes[at % kLanes] += f(at);
  return total(lanes);
}

Levels normal_levels(const float* w, int64_t n, int n_bits) {
  const double mean = sum_of(n, [&](int64_t i) { return static_cast<double>(w[i]); }) / static_cast<double>(n);
  const double squares = sum_of(n, [&](int64_t i) {
    const double away = static_cast<double>(w[i]) - mean;
    return away * away;
  });
  const double step = kNormalStep[n_bits] * std::sqrt(squares / static_cast<double>(n));
  return {mean - step * ((1 << n_bits) - 1) / 2, step};
}

// codes[i] = the level nearest to w[i].
void nearest_codes(const float* w, int64_t n, int n_bits, const Levels& levels, uint8_t* codes) {
  const float scale = static_cast<float>(1 / levels.step);
  const float offset = static_cast<float>(0.5 - levels.low / levels.step);
  const float last = static_cast<float>((1 << n_bits) - 1);
  for (int64_t i = 0; i < n; ++i) {
    float at = w[i] * scale + offset;
    at = at > 0 ? at : 0;  // NaN too
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(at < last ? at : last));
  }
}

// The levels with the least squares of w - (low + step * code).
Levels fitted_levels(const float* w, int64_t n, const uint8_t* codes, const Levels& before) {
  const double count = static_cast<double>(n);
  const auto code = [&](int64_t i) { return static_cast<double>(codes[i]); };
  const double sum_c = sum_of(n, code);
  const double sum_cc = sum_of(n, [&](int64_t i) { return code(i) * code(i); });
  const double sum_w = sum_of(n, [&](int64_t i) { return static_cast<double>(w[i]); });
  const double sum_cw = sum_of(n, [&](int64_t i) { return code(i) * static_cast<double>(w[i]); });
  const double spread = count * sum_cc - sum_c * sum_c;
  if (!(spread > 0)) return {sum_w / count - before.step * sum_c / count, before.step};  // one code for all
  const double step = (count * sum_cw - sum_c * sum_w) / spread;
  return {(sum_w - step * sum_c) / count, step};
}

void pack(const uint8_t* codes, int64_t n, int n_bits, std::byte* out) {
  for (int64_t i = 0; i < n; ++i) {
    std::byte* group = out + i / kPlaneGroup * plane_group_bytes(n_bits);
    const int64_t at = i % kPlaneGroup;
    if (n_bits > 1) group[at % 64] |= static_cast<std::byte>((codes[i] & 3) << (2 * (at / 64)));
    if (n_bits == 2) continue;
    if (n_bits == 3) group += 64;
    group[at / 8] |= static_cast<std::byte>((codes[i] >> (n_bits - 1)) << (at % 8));
  }
}

}  // namespace

int plane_code(const std::byte* row, int n_bits, int64_t i) {
  const std::byte* group = row + i / kPlaneGroup * plane_group_bytes(n_bits);
  const int64_t at = i % kPlaneGroup;
  int code = 0;
  if (n_bits > 1) code = static_cast<int>(group[at % 64]) >> (2 * (at / 64)) & 3;
  if (n_bits == 2) return code;
  const std::byte* bits = n_bits == 3 ? group + 64 : group;
  return code + (static_cast<int>(bits[at / 8]) >> (at % 8) & 1) * (1 << (n_bits - 1));
}

PlaneFit encode_planes(const float* weights, int64_t n, int n_bits, std::byte* out) {
  std::memset(out, 0, static_cast<size_t>(plane_row_bytes(n_bits, n)));
  Levels levels = normal_levels(weights, n, n_bits);
  if (!std::isfinite(levels.step)) return {std::numeric_limits<float>::quiet_NaN(), 0, 0};
  std::vector<uint8_t> codes(static_cast<size_t>(n));
  if (levels.step > kLeastStep) {
    for (int round = 0; round < kRounds; ++round) {
      nearest_codes(weights, n, n_bits, levels, codes.data());
      levels = fitted_levels(weights, n, codes.data(), levels);
    }
  } else {
    levels = {levels.low + levels.step * ((1 << n_bits) - 1) / 2, 0};  // the mean alone
  }
  pack(codes.data(), n, n_bits, out);
  PlaneFit fit{static_cast<float>(levels.low), static_cast<float>(levels.step), 0};
  const double squares = sum_of(n, [&](int64_t i) {
    const double code = static_cast<double>(codes[static_cast<size_t>(i)]);
    const double rest =
        static_cast<double>(weights[i]) - (static_cast<double>(fit.low) + static_cast<double>(fit.step) * code);
    return rest * rest;
  });
  fit.error = static_cast<float>(std::sqrt(squares));
  return fit;
}

}  // namespace hotset
