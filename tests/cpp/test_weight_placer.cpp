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
        CHECK((order.empty() ? placed.arena_bytes() == 0 : true));  // rows that lie in order are used as they lie
        const PlacedWeights& got = placed.weights();
        CHECK(got.layers.size() == 6);
        for (size_t i = 0; i < got.layers.size(); ++i)
          check_layer(got.layers[i], rows->weights().layers[i], order.empty() ? in_order : order[i]);
        check_whole(got.output, model->weights().output), check_whole(got.output_norm, model->weights().output_norm);
        check_whole(got.token_embd, model->weights().token_embd);
      }
}

}  // namespace
