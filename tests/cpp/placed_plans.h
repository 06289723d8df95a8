// Models whose weights lie on two sides within the model's own memory, and plans of them.
#pragma once

#include <random>
#include <string>
#include <variant>
#include <vector>

#include "core/error.h"
#include "core/machine_rates.h"
#include "core/model.h"
#include "core/placed_weights.h"
#include "core/planner.h"
#include "tests/cpp/plan_util.h"

namespace hotset::test {

constexpr Place kHost = Place::kHost, kDevice = Place::kDevice;

inline NamedTensor rows_of(NamedTensor tensor, int64_t first, int64_t n) {
  if (!tensor || n == 0) return {};
  tensor.view.data = tensor.view.row(first);
  tensor.view.n_rows = n;
  return tensor;
}

inline NamedTensor values_of(NamedTensor tensor, int64_t first, int64_t n) {
  if (!tensor || n == 0) return {};
  tensor.view.data += static_cast<size_t>(first) * sizeof(float);
  tensor.view.n_cols = n;
  return tensor;
}

// Units [first, first + n) of a layer, and the rows [first, first + n_detect) of its detect matrix.
inline LayerWeights units_of(const LayerWeights& w, int64_t first, int64_t n, int64_t n_detect) {
  LayerWeights out;
  out.ffn_gate = rows_of(w.ffn_gate, first, n_detect), out.ffn_gate_b = values_of(w.ffn_gate_b, first, n_detect);
  const int64_t n_up = w.ffn_gate ? n : n_detect;
  out.ffn_up = rows_of(w.ffn_up, first, n_up), out.ffn_up_b = values_of(w.ffn_up_b, first, n_up);
  out.ffn_down_t = rows_of(w.ffn_down_t, first, n);
  return out;
}

inline PlacedLayer place_layer(const LayerWeights& w, int64_t n_units, const LayerPlacement& place) {
  const int64_t n_hot = place.n_hot, n_cold = n_units - n_hot;
  const bool on_device = place.detect == DetectPlace::kDevice;
  PlacedLayer out{place, n_units, units_of(w, 0, n_hot, on_device ? n_units : n_hot),
                  units_of(w, n_hot, n_cold, on_device ? 0 : n_cold)};
  LayerWeights& home = place.attention == kDevice ? out.device : out.host;
  const LayerWeights ffn = home;
  home = w;
  home.ffn_gate = ffn.ffn_gate, home.ffn_gate_b = ffn.ffn_gate_b;
  home.ffn_up = ffn.ffn_up, home.ffn_up_b = ffn.ffn_up_b, home.ffn_down_t = ffn.ffn_down_t;
  return out;
}

using Layers = std::vector<LayerPlacement>;

inline PlacedWeights place_weights(const Model& model, const Layers& layers, Place head) {
  const Weights& w = model.weights();
  PlacedWeights out;
  for (size_t i = 0; i < layers.size(); ++i)
    out.layers.push_back(place_layer(w.layers[i], model.config().n_ff, layers[i]));
  out.head = head;
  out.token_embd = w.token_embd, out.token_embd_proj = w.token_embd_proj, out.position_embd = w.position_embd;
  out.head_weights = w.head;
  out.rope_freqs = w.rope_freqs;
  return out;
}

// What a layer of n units may be.
inline Layers layer_choices(int64_t n, bool exact) {
  Layers out;
  for (const Place attention : {kHost, kDevice}) {
    out.push_back({0, DetectPlace::kHost, attention});
    for (const int64_t n_hot : {int64_t{1}, n / 3, n - 1}) out.push_back({n_hot, DetectPlace::kSplit, attention});
    for (const int64_t n_hot : {int64_t{0}, n / 3, n})
      if (exact || n_hot == n) out.push_back({n_hot, DetectPlace::kDevice, attention});
  }
  for (const LayerPlacement& each : {LayerPlacement{0, DetectPlace::kHost}, {n / 3, DetectPlace::kSplit}, {n, DetectPlace::kDevice}})
    out.push_back({each.n_hot, each.detect, kDevice, false, true});
  return out;
}

struct Variant {
  Layers layers;
  Place head;
};

// Models whose three layers are alike, for every choice, and random ones.
inline std::vector<Variant> variants(int64_t n_units, bool exact) {
  const Layers choices = layer_choices(n_units, exact);
  std::mt19937_64 random(7);
  std::vector<Variant> out;
  for (const Place head : {kHost, kDevice}) {
    for (const LayerPlacement& each : choices) out.push_back({Layers(3, each), head});
    for (int i = 0; i < 4; ++i) {
      Variant mixed{{}, head};
      for (int layer = 0; layer < 3; ++layer) mixed.layers.push_back(choices[random() % choices.size()]);
      out.push_back(mixed);
    }
  }
  return out;
}

inline PlanOptions options_of(bool exact) {
  PlanOptions out{.max_rows = 8, .max_output_rows = 4, .max_positions = 64};
  out.exact = exact;
  return out;
}

inline std::string text_of(const Variant& variant) {
  std::string out;
  for (const LayerPlacement& each : variant.layers)
    out += cat(each.n_hot, " hot, detect ", place_name(each.detect), ", attention ", place_name(each.attention), ", kv ",
               place_name(each.kv()), "; ");
  return out + "head " + place_name(variant.head);
}

// Whether losing the step leaves a plan that computes something else without a sign: it changes a value in place.
inline bool works_in_place(const Step& step) {
  if (std::holds_alternative<op::Rope>(step.op) || std::holds_alternative<op::EmbedPosition>(step.op)) return true;
  if (std::holds_alternative<op::HeadNorm>(step.op) || std::holds_alternative<op::SoftCap>(step.op)) return true;
  const auto* activate = std::get_if<op::Activate>(&step.op);
  if (activate && activate->up == activate->out) return true;
  const auto* norm = std::get_if<op::Norm>(&step.op);
  return norm && norm->in == norm->out;
}

// The plan without a flag's Signal and Wait, as if nobody had thought of it.
inline Plan without_flag(Plan plan, int32_t flag) {
  std::vector<Step> kept;
  for (Step step : plan.steps) {
    FlagId* id = nullptr;
    if (auto* signal = std::get_if<op::Signal>(&step.op)) id = &signal->flag;
    if (auto* wait = std::get_if<op::Wait>(&step.op)) id = &wait->flag;
    if (id && id->index == flag) continue;
    if (id && id->index > flag) --id->index;
    kept.push_back(step);
  }
  plan.steps = kept;
  plan.flags.erase(plan.flags.begin() + flag);
  return plan;
}

// With which a card is worth its while for a tiny model.
inline MachineRates made_up_rates() {
  MachineRates out;
  out.read.push_back({"huge", 1, 50, 1, {}});
  out.gpu = GpuRates{"card", 0, 500, {}};
  out.pcie = PcieRates{20, 20};
  out.handoff_us = 0.01;
  return out;
}

}  // namespace hotset::test
