// Weights brought to two sides: every row is where the placement wants it, and bytes are as told before.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/devices.h"
#include "core/weight_placer.h"
#include "core/weights.h"
#include "tests/cpp/families.h"

namespace {

using namespace hotset;
using namespace hotset::test;

Placement random_placement(std::mt19937_64& random, int64_t n_layer, int64_t n_ff) {
  Placement out;
  const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
  for (int64_t i = 0; i < n_layer; ++i) {
    const int64_t n_hot = pick(4) == 0 ? 0 : pick(4) == 0 ? n_ff : pick(n_ff + 1);
    const DetectPlace detect = pick(2) ? DetectPlace::kDevice : n_hot == 0 ? DetectPlace::kHost : DetectPlace::kSplit;
    out.layers.push_back({n_hot, detect, pick(2) ? Place::kDevice : Place::kHost});
  }
  out.head = pick(2) ? Place::kDevice : Place::kHost;
  return out;
}

// Row i of what a side has is the model's row of slot first + i.
void check_rows(const NamedTensor& got, const NamedTensor& model, const std::vector<int32_t>& units, int64_t first,
                int64_t n) {
  CHECK(static_cast<bool>(got) == (static_cast<bool>(model) && n > 0));
  if (!got || !model) return;
  CHECK(got.name == model.name);
  CHECK(got.view.dtype == model.view.dtype);
  const bool is_vector = model.view.n_rows == 1 && units.size() > 1;
  CHECK((is_vector ? got.view.n_cols : got.view.n_rows) == n);
  const size_t each = is_vector ? row_bytes(model.view.dtype, 1) : model.view.row_stride;
  int64_t n_wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const size_t unit = static_cast<size_t>(units[static_cast<size_t>(first + i)]);
    n_wrong += std::memcmp(got.view.data + static_cast<size_t>(i) * each, model.view.data + unit * each, each) != 0;
  }
  CHECK(n_wrong == 0);
}

void check_whole(const NamedTensor& got, const NamedTensor& model) {
  CHECK(static_cast<bool>(got) == static_cast<bool>(model));
  if (!got || !model) return;
  CHECK(got.view.size_bytes() == model.view.size_bytes());
  CHECK(std::memcmp(got.view.data, model.view.data, model.view.size_bytes()) == 0);
}

void check_layer(const PlacedLayer& got, const LayerWeights& model, const std::vector<int32_t>& units) {
  const int64_t n = got.n_units, hot = got.place.n_hot;
  const bool on_device = got.place.attention == Place::kDevice;
  const LayerWeights &side = on_device ? got.device : got.host, &other = on_device ? got.host : got.device;
  check_whole(side.attn_q, model.attn_q), check_whole(side.attn_norm, model.attn_norm);
  check_whole(side.attn_v_b, model.attn_v_b), check_whole(side.ffn_norm, model.ffn_norm);
  check_whole(side.ffn_down_b, model.ffn_down_b);
  CHECK_FALSE(static_cast<bool>(other.attn_q));
  const int64_t detected = got.place.detect == DetectPlace::kDevice ? n : hot;
  check_rows(got.device.ffn_gate, model.ffn_gate, units, 0, detected);
  check_rows(got.host.ffn_gate, model.ffn_gate, units, detected, n - detected);
  check_rows(got.host.ffn_gate_b, model.ffn_gate_b, units, detected, n - detected);
  const int64_t n_up = model.ffn_gate ? hot : detected;
  check_rows(got.device.ffn_up, model.ffn_up, units, 0, n_up);
  check_rows(got.device.ffn_up_b, model.ffn_up_b, units, 0, n_up);
  check_rows(got.host.ffn_up, model.ffn_up, units, n_up, n - n_up);
  check_rows(got.device.ffn_down_t, model.ffn_down_t, units, 0, hot);
  check_rows(got.host.ffn_down_t, model.ffn_down_t, units, hot, n - hot);
}

TEST_CASE("weight placer: every row is where the placement wants it") {
  std::mt19937_64 random(11);
  const auto device = make_cpu_device({});
  for (const Family& family : {Family{"llama", Activation::kRelu}, {"opt", Activation::kRelu}, {"arcee", Activation::kRelu2}})
    for (const DType dtype : {DType::kF16, DType::kQ4_0})
      for (const bool neuron_major : {true, false}) {
        TinySpec spec = spec_of(family, dtype);
        spec.neuron_major = neuron_major, spec.n_layer = 6;
        const auto model = load_tiny(spec);
        const auto rows = std::make_shared<const Relayout>(*model, 2, LogSink{});
        const Placement placement = random_placement(random, spec.n_layer, spec.n_ff);
        const auto order = random() % 3 == 0 ? std::vector<std::vector<int32_t>>{} : random_unit_order(random, spec);
        std::vector<int32_t> in_order(static_cast<size_t>(spec.n_ff));
        std::iota(in_order.begin(), in_order.end(), 0);
        const WeightPlacer outline(*model, rows, placement, order, *device, {.is_outline = true});
        const WeightPlacer placed(*model, rows, placement, order, *device, {.n_threads = 2});
        CHECK(outline.device_bytes() == placed.device_bytes());
        CHECK(outline.arena_bytes() == placed.arena_bytes());
        // Rows that lie in order are used as they lie; turned ones nobody else has.
        if (order.empty() && neuron_major) CHECK(placed.arena_bytes() == 0);
        const PlacedWeights& got = placed.weights();
        CHECK(got.layers.size() == 6);
        for (size_t i = 0; i < got.layers.size(); ++i) {
          check_layer(got.layers[i], rows->weights().layers[i], order.empty() ? in_order : order[i]);
          if (order.empty()) CHECK_FALSE(placed.can_exchange(i));  // gate and up rows are the file's
        }
        check_whole(got.head_weights.output, model->weights().head.output);
        check_whole(got.head_weights.norm, model->weights().head.norm);
        check_whole(got.token_embd, model->weights().token_embd);
      }
}

TEST_CASE("weight placer: a predictor's rows are beside the detect rows, or all on the device") {
  std::mt19937_64 random(13);
  const auto device = make_cpu_device({});
  for (const Family& family : {Family{"llama", Activation::kRelu}, {"opt", Activation::kRelu}}) {
    TinySpec spec = spec_of(family, DType::kQ4_0);
    spec.n_layer = 12;
    const auto model = load_tiny(spec);
    const auto rows = std::make_shared<const Relayout>(*model, 2, LogSink{});
    Placement placement = random_placement(random, spec.n_layer, spec.n_ff);
    for (LayerPlacement& layer : placement.layers) {
      layer.device_predicts = layer.detect != DetectPlace::kDevice && layer.n_hot < spec.n_ff && random() % 2;
      if (layer.device_predicts) layer.detect = DetectPlace::kSplit;
    }
    const auto order = std::make_shared<const std::vector<std::vector<int32_t>>>(random_unit_order(random, spec));
    const PredictorSpec predicted = parse_predictor("bit_planes:2:0.25", spec.n_layer);
    const Predictor by_unit(model->weights(), predicted, {.n_threads = 2});
    const Predictor outlined(model->weights(), predicted, {.is_outline = true, .order = order});
    Predictor by_slot(model->weights(), predicted, {.n_threads = 2, .order = order});
    CHECK(outlined.n_bytes() == by_slot.n_bytes());
    CHECK(outlined.bytes_per_token() == by_slot.bytes_per_token());
    const WeightPlacer outline(*model, rows, placement, *order, *device, {1, true, false, {}, &outlined});
    const WeightPlacer placed(*model, rows, placement, *order, *device, {2, false, false, {}, &by_slot});
    const WeightPlacer without(*model, rows, placement, *order, *device, {.n_threads = 2});
    CHECK(outline.device_bytes() == placed.device_bytes());
    CHECK(placed.arena_bytes() == without.arena_bytes());  // the host's rows stay where they were made
    for (size_t i = 0; i < placement.layers.size(); ++i) {
      const PlacedLayer& got = placed.weights().layers[i];
      const int64_t n = spec.n_ff, n_there = got.place.predictor_on_device() ? n : got.place.n_hot;
      by_slot.drop_rows(i, n_there);
      const std::vector<int32_t>& units = (*order)[i];
      CHECK(by_unit.errors_by_unit(i) == by_slot.errors_by_unit(i));
      CHECK(std::memcmp(got.unit_of_slot.view.data, units.data(), units.size() * sizeof(int32_t)) == 0);
      using Part = NamedTensor Predictor::Layer::*;
      for (const Part part :
           {&Predictor::Layer::planes, &Predictor::Layer::low, &Predictor::Layer::step, &Predictor::Layer::error}) {
        check_rows(got.device_predictor.*part, by_unit.layers()[i].*part, units, 0, n_there);
        check_rows(got.host_predictor.*part, by_unit.layers()[i].*part, units, n_there, n - n_there);
      }
      const LayerWeights& w = model->weights().layers[i];
      const NamedTensor whole_bias = got.place.device_predicts ? (w.ffn_gate ? w.ffn_gate_b : w.ffn_up_b) : NamedTensor{};
      check_rows(got.device_predictor.bias, whole_bias, units, 0, n);
      CHECK(got.device_predictor.z == 0.25f);
      CHECK(got.host_predictor.n_bits == 2);
    }
  }
}

}  // namespace
