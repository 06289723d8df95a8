// Norm, rotary embedding, activations and other work on single rows; and the list of all float kernels.
#pragma once

#include "cpu/float_attend.h"
#include "cpu/float_gemm.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// out[i] = f(a[i], b[i]), kWidth at a time. out may equal a or b.
template <class F>
inline void map_rows(const float* a, const float* b, int64_t n, float* out, F f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, f(load(a + i), load(b + i)));
  if (i < n) store_some(out + i, f(load_some(a + i, n - i), load_some(b + i, n - i)), n - i);
}

void f32_to_f16_row(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_f16(out + i, load(x + i));
  if (i < n) {
    uint16_t rest[kWidth];
    store_f16(rest, load_some(x + i, n - i));
    for (int64_t j = i; j < n; ++j) out[j] = rest[j - i];
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  float sum;
  const std::byte* const row[1] = {reinterpret_cast<const std::byte*>(x)};
  dot_tile<WeightF32, 1, 1>(row, &x, n, &sum, 0, nullptr);
  const float inverse = 1.0f / square_root(sum / static_cast<float>(n) + eps);
  map_rows(x, weight, n, out, [&](Vec v, Vec w) { return mul(mul(v, splat(inverse)), w); });
}

// The lane tree over 16 plain sums.
inline float lane_sum(const float* x, int64_t n) {
  Vec lanes[kParts];
  for (int p = 0; p < kParts; ++p) lanes[p] = zero();
  const int64_t whole = n / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16)
    for (int p = 0; p < kParts; ++p) lanes[p] = add(lanes[p], load(x + i + p * kWidth));
  float spilled[16];
  for (int p = 0; p < kParts; ++p) store(spilled + p * kWidth, lanes[p]);
  for (int64_t i = whole; i < n; ++i) spilled[i - whole] += x[i];
  return reduce_lanes(spilled);
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out) {
  const Vec mean = splat(lane_sum(x, n) / static_cast<float>(n));
  map_rows(x, x, n, out, [&](Vec v, Vec) { return sub(v, mean); });
  float sum;
  const std::byte* const row[1] = {reinterpret_cast<const std::byte*>(out)};
  const float* const centred = out;
  dot_tile<WeightF32, 1, 1>(row, &centred, n, &sum, 0, nullptr);
  const Vec inverse = splat(1.0f / square_root(sum / static_cast<float>(n) + eps));
  map_rows(out, weight, n, out, [&](Vec v, Vec w) { return mul(mul(v, inverse), w); });
  if (bias != nullptr) map_rows(out, bias, n, out, [](Vec v, Vec b) { return add(v, b); });
}

void rope_interleaved(float* x, int64_t n_rot, const float* cos, const float* sin) {
  for (int64_t i = 0; i < n_rot / 2; ++i) {
    const float x0 = x[2 * i];
    const float x1 = x[2 * i + 1];
    x[2 * i] = x0 * cos[i] - x1 * sin[i];
    x[2 * i + 1] = x0 * sin[i] + x1 * cos[i];
  }
}

void rope_halves(float* x, int64_t n_rot, const float* cos, const float* sin) {
  const int64_t half = n_rot / 2;
  float* const low = x;
  float* const high = x + half;
  const auto rotate = [](Vec& x0, Vec& x1, Vec c, Vec s) {
    const Vec old = x0;
    x0 = sub(mul(old, c), mul(x1, s));
    x1 = add(mul(old, s), mul(x1, c));
  };
  int64_t i = 0;
  for (; i + kWidth <= half; i += kWidth) {
    Vec x0 = load(low + i);
    Vec x1 = load(high + i);
    rotate(x0, x1, load(cos + i), load(sin + i));
    store(low + i, x0);
    store(high + i, x1);
  }
  if (i == half) return;
  const int64_t rest = half - i;
  Vec x0 = load_some(low + i, rest);
  Vec x1 = load_some(high + i, rest);
  rotate(x0, x1, load_some(cos + i, rest), load_some(sin + i, rest));
  store_some(low + i, x0, rest);
  store_some(high + i, x1, rest);
}

void rope(float* x, int64_t n_rot, bool interleaved, const float* cos, const float* sin) {
  if (interleaved)
    rope_interleaved(x, n_rot, cos, sin);
  else
    rope_halves(x, n_rot, cos, sin);
}

void silu_mul(const float* gate, const float* up, int64_t n, float* h) {
  map_rows(gate, up, n, h, [](Vec g, Vec u) { return mul(silu_vec(g), u); });
}

void relu_mul(const float* gate, const float* up, int64_t n, float* h) {
  map_rows(gate, up, n, h, [](Vec g, Vec u) { return mul(max(g, zero()), u); });
}

void silu_row(const float* x, int64_t n, float* h) {
  map_rows(x, x, n, h, [](Vec v, Vec) { return silu_vec(v); });
}

void relu_row(const float* x, int64_t n, float* h) {
  map_rows(x, x, n, h, [](Vec v, Vec) { return max(v, zero()); });
}

void gelu_row(const float* x, int64_t n, float* h) {
  map_rows(x, x, n, h, [](Vec v, Vec) { return gelu_vec(v); });
}

void gelu_tanh_row(const float* x, int64_t n, float* h) {
  map_rows(x, x, n, h, [](Vec v, Vec) { return gelu_tanh_vec(v); });
}

void fat_relu_row(const float* x, float threshold, int64_t n, float* h) {
  for (int64_t i = 0; i < n; ++i) h[i] = x[i] > 0.0f ? x[i] + threshold : 0.0f;
}

void mul_rows(const float* a, const float* b, int64_t n, float* out) {
  map_rows(a, b, n, out, [](Vec x, Vec y) { return mul(x, y); });
}

void scale_row(const float* x, float scale, int64_t n, float* out) {
  const Vec by = splat(scale);
  map_rows(x, x, n, out, [&](Vec v, Vec) { return mul(v, by); });
}

void soft_cap_row(const float* x, float cap, int64_t n, float* out) {
  const Vec most = splat(cap);
  map_rows(x, x, n, out, [&](Vec v, Vec) { return mul(most, tanh_vec(div(v, most))); });
}

// Without branches: whether a unit is active is as good as random.
int64_t select_units(const float* x, int64_t n, int32_t* list) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    list[count] = static_cast<int32_t>(i);
    count += !(x[i] <= 0.0f);
  }
  return count;
}

void add_rows(const float* a, const float* b, int64_t n, float* out) {
  map_rows(a, b, n, out, [](Vec x, Vec y) { return add(x, y); });
}

void plane_margins(const MarginArgs& args) {
  const Vec sum = splat(args.sum), slack = splat(args.slack);
  const auto margin = [&](int64_t i, auto load_part) {
    const Vec bias = args.bias != nullptr ? load_part(args.bias + i) : zero();
    const Vec least = fused(load_part(args.low + i), sum, fused(load_part(args.error + i), slack, bias));
    return fused(load_part(args.step + i), load_part(args.margins + i), least);
  };
  int64_t i = 0;
  for (; i + kWidth <= args.n; i += kWidth) store(args.margins + i, margin(i, [](const float* at) { return load(at); }));
  const int64_t rest = args.n - i;
  if (rest > 0)
    store_some(args.margins + i, margin(i, [rest](const float* at) { return load_some(at, rest); }), rest);
}

// The body of fill_float_<isa>.
inline void fill_float(Kernels& table) {
  table.dot_rows[kWeightF32] = dot_rows<WeightF32>;
  table.dot_rows[kWeightF16] = dot_rows<WeightF16>;
  table.dot_rows[kWeightBF16] = dot_rows<WeightBF16>;
  table.gemm[kWeightF32] = gemm<WeightF32>;
  table.gemm[kWeightF16] = gemm<WeightF16>;
  table.gemm[kWeightBF16] = gemm<WeightBF16>;
  table.float_gemm_scratch_bytes = float_gemm_scratch_bytes;
  table.dequantize_row[kWeightF32] = dequantize_row<WeightF32>;
  table.dequantize_row[kWeightF16] = dequantize_row<WeightF16>;
  table.dequantize_row[kWeightBF16] = dequantize_row<WeightBF16>;
  table.dequantize_row[kWeightQ8_0] = dequantize_row<WeightQ8_0>;
  table.dequantize_row[kWeightQ4_0] = dequantize_row<WeightQ4_0>;
  table.dequantize_row[kWeightQ4_K] = dequantize_row<WeightQ4_K>;
  table.dequantize_row[kWeightQ5_K] = dequantize_row<WeightQ5_K>;
  table.dequantize_row[kWeightQ6_K] = dequantize_row<WeightQ6_K>;
  table.f32_to_f16_row = f32_to_f16_row;
  table.rms_norm = rms_norm;
  table.layer_norm = layer_norm;
  table.rope = rope;
  table.silu_mul = silu_mul;
  table.relu_mul = relu_mul;
  table.silu = silu_row;
  table.relu = relu_row;
  table.gelu = gelu_row;
  table.gelu_tanh = gelu_tanh_row;
  table.fat_relu = fat_relu_row;
  table.mul = mul_rows;
  table.scale = scale_row;
  table.soft_cap = soft_cap_row;
  table.plane_margins = plane_margins;
  table.select_units = select_units;
  table.add = add_rows;
  table.attend_chunk = attend_chunk;
  table.attend_scratch_bytes = attend_scratch_bytes;
}

}  // namespace
}  // namespace hotset::cpu
