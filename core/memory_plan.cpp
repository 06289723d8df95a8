#include "core/memory_plan.h"

#include <algorithm>
#include <cmath>

#include "core/weights.h"

namespace hotset {
namespace {

uint64_t bytes_of(const NamedTensor& tensor) { return tensor ? tensor.view.size_bytes() : 0; }

constexpr const char* kCpu = "cpu";
constexpr const char* kGpu = "gpu";

}  // namespace

void MemoryPlan::add(const std::string& name, const std::string& device, uint64_t bytes) {
  if (bytes == 0) return;
  for (MemoryComponent& each : components)
    if (each.name == name && each.device == device) {
      each.bytes += bytes;
      return;
    }
  components.push_back({name, device, bytes});
}

uint64_t MemoryPlan::bytes_on(const std::string& device) const {
  uint64_t out = 0;
  for (const MemoryComponent& each : components) out += each.device == device ? each.bytes : 0;
  return out;
}

LayerBytes layer_bytes(const Weights& weights, size_t layer, bool exact) {
  const LayerWeights& w = weights.layers[layer];
  LayerBytes out;
  for (const NamedTensor LayerWeights::*each : kBesideUnits) out.attention += bytes_of(w.*each);
  out.attention += bytes_of(w.ffn_gate_b) + bytes_of(w.ffn_up_b);
  const TensorView& detect = w.ffn_gate ? w.ffn_gate.view : w.ffn_up.view;
  const TensorView& down = w.ffn_down ? w.ffn_down.view : w.ffn_down_t.view;
  // A unit of the standard layout is a column of ffn_down: its share of the matrix, to the byte only over all units.
  const uint64_t n_units = static_cast<uint64_t>(detect.n_rows);
  const uint64_t down_row = w.ffn_down ? down.size_bytes() / n_units : down.row_stride;
  out.unit_rows = down_row + (w.ffn_gate ? w.ffn_up.view.row_stride : 0);
  out.shortest_row = w.ffn_gate ? std::min<uint64_t>(down_row, w.ffn_up.view.row_stride) : down_row;
  (exact ? out.detect_row : out.unit_rows) += detect.row_stride;
  return out;
}

uint64_t head_bytes(const Weights& weights) {
  const HeadWeights& head = weights.head;
  return bytes_of(head.output) + bytes_of(head.proj) + bytes_of(head.norm) + bytes_of(head.norm_b);
}

uint64_t embedding_bytes(const Weights& weights, uint64_t n_tokens) {
  constexpr double kMappedAtOnce = 64 << 10;
  const double all = static_cast<double>(bytes_of(weights.token_embd));
  const double pieces = all / kMappedAtOnce;
  const double places = 2 * std::pow(static_cast<double>(n_tokens), 0.65);
  const double touched = weights.tied ? all : all * (1 - std::exp(-places / std::max(pieces, 1.0)));
  return static_cast<uint64_t>(touched) + bytes_of(weights.token_embd_proj) + bytes_of(weights.position_embd);
}

MemoryPlan account(const Weights& weights, bool exact, const EngineBytes& engine, const Placement& placement) {
  MemoryPlan out;
  const auto side = [](bool on_device) { return on_device ? kGpu : kCpu; };
  out.add("embeddings", kCpu, engine.embeddings);
  uint64_t in_file = 0;  // of the down projections that are laid out anew
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerBytes bytes = layer_bytes(weights, i, exact);
    const LayerPlacement& at = placement.layers[i];
    const uint64_t n = static_cast<uint64_t>(weights.layers[i].ffn_up.view.n_rows);
    const uint64_t hot = static_cast<uint64_t>(at.n_hot);
    const uint64_t detected_there = at.detect == DetectPlace::kDevice ? n : hot;
    if (!engine.predictors.empty() && (engine.predictor == 0 || placement.uses_device())) {
      const PredictorBytes& predictor = engine.predictors[i];
      const uint64_t there = at.predictor_on_device() ? n : hot;
      out.add("predictor", kGpu, there > 0 ? predictor.shared + there * predictor.unit : 0);
      out.add("predictor", kCpu, there < n ? predictor.shared + (n - there) * predictor.unit : 0);
    }
    out.add("attention", side(at.attention == Place::kDevice), bytes.attention);
    out.add("kv", side(at.kv() == Place::kDevice), engine.kv_per_layer);
    out.add("detect", kGpu, detected_there * bytes.detect_row);
    out.add("detect", kCpu, (n - detected_there) * bytes.detect_row);
    out.add("units", kGpu, hot * bytes.unit_rows);
    out.add("units", kCpu, (n - hot) * bytes.unit_rows);
    in_file += engine.relayout > 0 ? bytes_of(weights.layers[i].ffn_down_t) : 0;
  }
  const bool head_on_device = placement.head == Place::kDevice;
  const uint64_t held = weights.tied && !head_on_device ? bytes_of(weights.head.output) : 0;  // by the embeddings
  out.add("head", side(head_on_device), head_bytes(weights) - held);
  out.add("compute", kCpu, engine.compute);
  out.add("logits", kCpu, engine.logits);
  if (placement.uses_device()) {
    out.add("compute", kGpu, engine.device_compute);
    out.add("handoff", kCpu, engine.handoff);
  } else {
    out.add("predictor", kCpu, engine.predictor);
  }
  if (!placement.uses_device() && engine.relayout > 0) {
    // The same bytes under the name of what they are: memory of its own, not pages of the file.
    for (MemoryComponent& each : out.components)
      if (each.name == "units") each.bytes -= std::min(each.bytes, in_file);
    out.add("relayout", kCpu, engine.relayout);
  }
  return out;
}

}  // namespace hotset
