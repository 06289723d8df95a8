#include "core/placed_weights.h"

#include "core/error.h"
#include "core/model_config.h"

namespace hotset {
namespace {

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& got) {
  throw Error(error_text("planner", what, expected, got, "place the model anew"));
}

void check(const PlacedLayer& layer, size_t index, const ModelConfig& config, bool exact) {
  const std::string where = cat("placement of layer ", index);
  const int64_t n_hot = layer.place.n_hot;
  if (layer.n_units < 1 || n_hot < 0 || n_hot > layer.n_units)
    fail(where, cat("0 to ", layer.n_units, " hot units"), cat(n_hot));
  if (layer.place.host_kv && layer.place.attention == Place::kHost)
    fail(where, "keys and values on the host with the attention", "apart from it");
  if (layer.place.detect == DetectPlace::kHost && n_hot > 0)
    fail(where, "no hot units without detect rows", cat(n_hot));
  const int64_t n_cold = layer.n_units - n_hot;
  const auto count = [&](int64_t got, int64_t n, const char* what) {
    if (got != n) fail(cat(where, ", ", what), cat(n, " rows"), cat(got));
  };
  const auto rows = [&](const NamedTensor& tensor, int64_t n, const char* what) {
    count(tensor ? tensor.view.n_rows : 0, n, what);
  };
  rows(layer.device.ffn_down_t, n_hot, "ffn_down_t of the device");
  rows(layer.host.ffn_down_t, n_cold, "ffn_down_t of the host");
  const bool gated = config.arch->gated, on_device = layer.place.detect == DetectPlace::kDevice;
  if (on_device && !exact && n_cold > 0)
    fail(cat(where, ", mode dense"), "detect rows beside their units", "all on the device");
  rows(gated ? layer.device.ffn_gate : layer.device.ffn_up, on_device ? layer.n_units : n_hot, "detect of the device");
  rows(gated ? layer.host.ffn_gate : layer.host.ffn_up, on_device ? 0 : n_cold, "detect of the host");
  if (layer.device_predictor || layer.host_predictor) {
    const int64_t n_there = exact && layer.place.predictor_on_device() ? layer.n_units : n_hot;
    count(layer.device_predictor.n_units(), n_there, "predictor of the device");
    count(layer.host_predictor.n_units(), layer.n_units - n_there, "predictor of the host");
  }
  if (!gated) return;
  rows(layer.device.ffn_up, n_hot, "ffn_up of the device");
  rows(layer.host.ffn_up, n_cold, "ffn_up of the host");
}

}  // namespace

NamedTensor first_rows(NamedTensor matrix, int64_t n) {
  if (!matrix || matrix.view.n_rows == n) return matrix;
  matrix.view.n_rows = n;
  matrix.name += cat("[:", n, "]");
  return matrix;
}

NamedTensor first_values(NamedTensor vector, int64_t n) {
  if (!vector || vector.view.n_cols == n) return vector;
  vector.view.n_cols = n, vector.view.row_stride = static_cast<size_t>(n) * sizeof(float);
  vector.name += cat("[:", n, "]");
  return vector;
}

uint64_t host_bytes(const PlacedWeights& weights) {
  uint64_t out = 0;
  const auto add = [&](const NamedTensor& tensor) { out += tensor ? tensor.view.size_bytes() : 0; };
  for (const PlacedLayer& layer : weights.layers) {
    const LayerWeights& w = layer.host;
    for (const NamedTensor LayerWeights::*each : kBesideUnits) add(w.*each);
    for (const NamedTensor* each : {&w.ffn_gate, &w.ffn_gate_b, &w.ffn_up, &w.ffn_up_b, &w.ffn_down_t}) add(*each);
  }
  for (const NamedTensor* each : {&weights.token_embd, &weights.token_embd_proj, &weights.position_embd}) add(*each);
  const HeadWeights& head = weights.head_weights;
  const bool is_tied = head.output.view.data == weights.token_embd.view.data;
  if (weights.head == Place::kHost && !is_tied) add(head.output);
  if (weights.head == Place::kHost) add(head.proj);
  return out;
}

void check_placed(const PlacedWeights& weights, const ModelConfig& config, bool exact) {
  if (static_cast<int64_t>(weights.layers.size()) != config.n_layer)
    fail("layers", cat(config.n_layer), cat(weights.layers.size()));
  for (size_t i = 0; i < weights.layers.size(); ++i) check(weights.layers[i], i, config, exact);
}

}  // namespace hotset
