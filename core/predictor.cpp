#include "core/predictor.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "core/bit_planes.h"
#include "core/error.h"
#include "core/model.h"
#include "core/quantize.h"
#include "core/thread_pool.h"

namespace hotset {
namespace {

// Deviations of the planes' error that a unit is given when nothing was calibrated, by bits. Of `hotset synth --shape
// llama-7b --sparsity 0.9 --type q4_0` they miss 0.9 % of the contributions with 1 bit and with 2, and propose 4.0 and
// 1.8 units for each active one.
constexpr float kDefaultZ[kMaxPlaneBits + 1] = {0, 1.2f, 0.9f, 0.9f};

// Rows coded at a time.
constexpr int64_t kRowsAtOnce = 32;

NamedTensor vector_of(const std::string& name, const float* values, int64_t n) {
  const size_t n_bytes = static_cast<size_t>(n) * sizeof(float);
  return {name, TensorView{reinterpret_cast<const std::byte*>(values), DType::kF32, n, 1, n_bytes}};
}

[[noreturn]] void refuse(const std::string& text, const std::string& expected) {
  throw std::invalid_argument(
      error_text("predictor", "predictor " + quoted(text), expected, "another text", "correct the value"));
}

}  // namespace

PredictorSpec parse_predictor(const std::string& text, int64_t n_layer) {
  constexpr char kExpected[] = "bit_planes:BITS or bit_planes:BITS:Z with 1 to 3 bits and a number Z";
  constexpr char kStart[] = "bit_planes:";
  constexpr size_t kLength = sizeof kStart - 1;
  PredictorSpec out;
  if (text.compare(0, kLength, kStart) != 0 || text.size() <= kLength) refuse(text, kExpected);
  out.n_bits = text[kLength] - '0';
  if (out.n_bits < 1 || out.n_bits > kMaxPlaneBits) refuse(text, kExpected);
  float z = kDefaultZ[out.n_bits];
  if (text.size() > kLength + 1) {
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + kLength + 2, end, z);
    if (text[kLength + 1] != ':' || error != std::errc() || rest != end || std::isnan(z)) refuse(text, kExpected);
  }
  out.thresholds.assign(static_cast<size_t>(n_layer), z);
  return out;
}

PredictorSpec predictor_of(std::shared_ptr<const Sidecar> sidecar) {
  if (!sidecar->predictor())
    throw Error(error_text("predictor", "sidecar " + quoted(sidecar->name(), 200), "one with a predictor",
                           "one without", "add one with `hotset train-predictor`, or use --predictor bit_planes:2"));
  const SidecarPredictor& stored = *sidecar->predictor();
  UnitsBySlot rows(sidecar, &sidecar->units_by_slot());
  return {stored.kind, stored.n_bits, stored.thresholds, stored.layers, std::move(rows), std::move(sidecar)};
}

PredictorSpec predictor_of(std::shared_ptr<const Model> model) {
  const SidecarPredictor& stored = *model->predictor();
  return {stored.kind, stored.n_bits, stored.thresholds, stored.layers, {}, std::move(model)};
}

uint64_t Predictor::Layer::shared_bytes() const { return fc1 ? fc1.view.size_bytes() : 0; }

uint64_t Predictor::Layer::unit_bytes() const {
  if (planes) return planes.view.row_stride + 3 * sizeof(float);
  return fc2 ? fc2.view.row_stride + sizeof(float) : 0;
}

Predictor::Predictor(const Weights& weights, const PredictorSpec& spec, const Options& options)
    : is_outline_(options.is_outline),
      order_(options.order),
      layers_(weights.layers.size()),
      owner_(spec.owner),
      arenas_(weights.layers.size()),
      description_(predictor_kind_name(spec.kind)) {
  const auto start = std::chrono::steady_clock::now();
  ThreadPool pool(is_outline_ ? 1 : options.n_threads);
  const bool has_planes = spec.kind == PredictorKind::kBitPlanes;
  if (has_planes) description_ += cat(":", spec.n_bits);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    layer.z = spec.thresholds[i];
    if (has_planes) {
      layer.n_bits = spec.n_bits;
      const LayerWeights& w = weights.layers[i];
      make_planes(w.ffn_gate ? w.ffn_gate : w.ffn_up, i, pool);
    } else if (spec.factors[i].fc1) {
      layer.reads_residual = spec.kind == PredictorKind::kResidualMlp;
      layer.has_relu = spec.kind == PredictorKind::kMlp || layer.reads_residual;
      order_factors(spec.factors[i], spec.rows, i);
    }
    for (const NamedTensor* each :
         {&layer.planes, &layer.low, &layer.step, &layer.error, &layer.fc1, &layer.fc2, &layer.bias})
      token_bytes_ += each->view.size_bytes();
  }
  if (is_outline_) return;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  char text[80];
  std::snprintf(text, sizeof text, "%.1f MiB made in %.2f s", static_cast<double>(n_bytes_) / (1 << 20),
                elapsed.count());
  log_to(options.log, LogLevel::kInfo, cat("[engine] predictor ", description_, ": ", text));
}

const int32_t* Predictor::units_of(size_t layer) const {
  return order_ && !order_->empty() ? (*order_)[layer].data() : nullptr;
}

std::vector<float> Predictor::errors_by_unit(size_t layer) const {
  const NamedTensor& error = layers_[layer].error;
  if (!error) return {};
  const float* const values = reinterpret_cast<const float*>(error.view.data);
  const int32_t* const units = units_of(layer);
  std::vector<float> out(static_cast<size_t>(error.view.n_cols));
  for (size_t slot = 0; slot < out.size(); ++slot) out[units ? static_cast<size_t>(units[slot]) : slot] = values[slot];
  return out;
}

void Predictor::drop_rows(size_t layer, int64_t n_rows) {
  const NamedTensor& rows = layers_[layer].planes ? layers_[layer].planes : layers_[layer].fc2;
  const bool is_ours = rows && rows.view.data == arenas_[layer].data();  // not in the model's file
  if (is_ours) arenas_[layer].drop(rows.view.data, static_cast<size_t>(n_rows) * rows.view.row_stride);
}

// Memory that is never touched takes none, so an outline has it too.
std::byte* Predictor::take(size_t layer, size_t n_bytes) {
  arenas_[layer] = Arena(n_bytes, Pages::kHuge);
  n_bytes_ += arenas_[layer].size();
  return arenas_[layer].data();
}

void Predictor::make_planes(const NamedTensor& detect, size_t index, ThreadPool& pool) {
  Layer& layer = layers_[index];
  const TensorView& matrix = detect.view;
  const int64_t n = matrix.n_cols, n_rows = is_outline_ ? 0 : matrix.n_rows;
  const size_t stride = static_cast<size_t>(plane_row_bytes(layer.n_bits, n));
  const size_t n_units = static_cast<size_t>(matrix.n_rows);
  std::byte* const rows = take(index, n_units * (stride + 3 * sizeof(float)));
  float* const low = reinterpret_cast<float*>(rows + n_units * stride);
  float* const step = low + n_units;
  float* const error = step + n_units;
  const int32_t* const units = units_of(index);
  const double norm = 1 / std::sqrt(static_cast<double>(n));
  std::atomic<int64_t> next{0};
  pool.run([&](int32_t) {
    std::vector<float> values(static_cast<size_t>(n));
    for (int64_t first = kRowsAtOnce * next++; first < n_rows; first = kRowsAtOnce * next++)
      for (int64_t row = first; row < std::min(first + kRowsAtOnce, n_rows); ++row) {
        dequantize_row(matrix.dtype, matrix.row(units ? units[row] : row), n, values.data());
        const PlaneFit fit = encode_planes(values.data(), n, layer.n_bits, rows + static_cast<size_t>(row) * stride);
        low[row] = fit.low, step[row] = fit.step;
        error[row] = static_cast<float>(static_cast<double>(fit.error) * norm);
      }
  });
  layer.planes = {cat(detect.name, ".planes"),
                  TensorView{rows, DType::kI8, static_cast<int64_t>(stride), matrix.n_rows, stride}};
  layer.low = vector_of(detect.name + ".low", low, matrix.n_rows);
  layer.step = vector_of(detect.name + ".step", step, matrix.n_rows);
  layer.error = vector_of(detect.name + ".error", error, matrix.n_rows);
}

void Predictor::order_factors(const SidecarPredictor::Layer& stored, const UnitsBySlot& stored_rows, size_t index) {
  Layer& layer = layers_[index];
  const TensorView& from = stored.fc2.view;
  const int32_t* const stored_units = stored_rows ? (*stored_rows)[index].data() : nullptr;
  const int32_t* const units = units_of(index);
  const bool stays = !stored_units && !units;  // then the file's rows are read where they are
  const size_t n_units = static_cast<size_t>(from.n_rows), rows_bytes = stays ? 0 : from.size_bytes();
  std::byte* const rows = take(index, rows_bytes + (n_units + 1) * sizeof(float));
  float* const bias = reinterpret_cast<float*>(rows + (rows_bytes + 3) / 4 * 4);
  std::vector<size_t> row_of_unit(n_units);
  for (size_t row = 0; row < n_units; ++row) row_of_unit[units ? static_cast<size_t>(units[row]) : row] = row;
  for (size_t slot = 0; slot < n_units && !is_outline_; ++slot) {
    const size_t row = row_of_unit[stored_units ? static_cast<size_t>(stored_units[slot]) : slot];
    if (!stays) std::memcpy(rows + row * from.row_stride, from.row(static_cast<int64_t>(slot)), from.row_stride);
    float value = 0;
    if (stored.bias) std::memcpy(&value, stored.bias.view.data + slot * sizeof(float), sizeof value);
    bias[row] = value + layer.z;
  }
  layer.fc1 = stored.fc1;
  layer.fc2 = stored.fc2;
  if (!stays) layer.fc2.view.data = rows;
  layer.bias = vector_of(stored.fc1.name + ".bias", bias, static_cast<int64_t>(n_units));
}

}  // namespace hotset
