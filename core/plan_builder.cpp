#include "core/plan_builder.h"

#include <cmath>

#include "core/error.h"

namespace hotset {

PlanBuilder::PlanBuilder(const ModelConfig& config, const PlanOptions& options)
    : config_(config), exact_(options.exact) {
  plan_.max_rows = options.max_rows;
  plan_.max_output_rows = options.max_output_rows;
  plan_.max_positions = options.max_positions;
  plan_.n_vocab = config.n_vocab;
  plan_.kv = KvLayout{config.n_layer, config.n_head_kv, config.head_dim, options.kv_type};
}

Plan PlanBuilder::finish() {
  const std::vector<std::string> problems = lint(plan_);
  if (!problems.empty())
    throw Error(error_text("planner", "plan", "no problems", problems[0], "report this with the model's name"));
  return std::move(plan_);
}

BufferId PlanBuilder::buffer(const std::string& name, int64_t n_cols, BufferRows rows) {
  plan_.buffers.push_back({name, n_cols, rows, BufferKind::kFloats, lane_});
  return {static_cast<int32_t>(plan_.buffers.size()) - 1};
}

BufferId PlanBuilder::unit_list(const std::string& name, int64_t n_units) {
  const BufferId out = buffer(name, n_units + 1);
  plan_.buffers.back().kind = BufferKind::kUnits;
  return out;
}

PlanBuilder::Activations PlanBuilder::activations(const std::string& prefix, BufferId x, BufferId x_norm) {
  const int64_t n_q = config_.n_head * config_.head_dim, n_kv = config_.n_head_kv * config_.head_dim;
  Activations out;
  out.x = x, out.x_norm = x_norm;
  if (has_rope()) out.angles = buffer(prefix + "angles", config_.n_rot);
  out.q = buffer(prefix + "q", n_q);
  out.k = buffer(prefix + "k", n_kv);
  out.v = buffer(prefix + "v", n_kv);
  out.attn = buffer(prefix + "attn", n_q);
  out.y = buffer(prefix + "y", config_.n_embd);
  return out;
}

WeightId PlanBuilder::weight(const NamedTensor& tensor) {
  if (!tensor) return {};
  plan_.weights.push_back({tensor.name, tensor.view, lane_});
  return {static_cast<int32_t>(plan_.weights.size()) - 1};
}

// Radians per position of each rotated pair: base^(-2i/n_rot), divided by the model's scaling.
void PlanBuilder::set_rope_freqs(const NamedTensor& divisors) {
  std::vector<double>& out = plan_.rope_freqs;
  out.resize(static_cast<size_t>(config_.n_rot / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config_.n_rot);
    out[i] = std::pow(static_cast<double>(config_.rope_freq_base), exponent) / static_cast<double>(config_.rope_scale);
    if (divisors) out[i] /= static_cast<double>(reinterpret_cast<const float*>(divisors.view.data)[i]);
  }
}

void PlanBuilder::embed(const NamedTensor& table, const NamedTensor& positions, BufferId x) {
  add(op::Embed{weight(table), x});
  if (!has_rope()) add(op::EmbedPosition{weight(positions), x});
}

void PlanBuilder::norm(const NamedTensor& w, const NamedTensor& bias, BufferId in, BufferId out) {
  const WeightId weight_id = weight(w);
  add(op::Norm{config_.arch->norm, weight_id, weight(bias), config_.norm_eps, in, out});
}

void PlanBuilder::mat_mul(const NamedTensor& w, const NamedTensor& bias, BufferId in, BufferId out) {
  const WeightId weight_id = weight(w);
  add(op::MatMul{weight_id, weight(bias), in, out});
}

void PlanBuilder::rope(BufferId x, int64_t n_head, BufferId angles) {
  if (has_rope()) add(op::Rope{config_.arch->rope, n_head, config_.head_dim, config_.n_rot, angles, x});
}

void PlanBuilder::attention(const LayerWeights& w, int64_t layer, const Activations& a) {
  project_qkv(w, a);
  attend(layer, a);
  add_attention(w, a);
}

void PlanBuilder::project_qkv(const LayerWeights& w, const Activations& a) {
  norm(w.attn_norm, w.attn_norm_b, a.x, a.x_norm);
  mat_mul(w.attn_q, w.attn_q_b, a.x_norm, a.q);
  mat_mul(w.attn_k, w.attn_k_b, a.x_norm, a.k);
  mat_mul(w.attn_v, w.attn_v_b, a.x_norm, a.v);
  rope(a.q, config_.n_head, a.angles);
  rope(a.k, config_.n_head_kv, a.angles);
}

void PlanBuilder::attend(int64_t layer, const Activations& a) {
  add(op::StoreKv{layer, a.k, a.v});
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  add(op::Attention{layer, config_.n_head, scale, a.q, a.attn});
}

void PlanBuilder::add_attention(const LayerWeights& w, const Activations& a) {
  mat_mul(w.attn_output, w.attn_output_b, a.attn, a.y);
  add(op::Add{a.x, a.y, a.x});
}

void PlanBuilder::predict(const Predictor::Layer& p, WeightId bias, const Prediction& at) {
  if (p.planes) {
    const WeightId planes = weight(p.planes), low = weight(p.low), step = weight(p.step), error = weight(p.error);
    add(op::Predict{p.n_bits, p.z, planes, low, step, error, bias, at.in, at.margins});
    return;
  }
  mat_mul(p.fc1, {}, at.in, at.hidden);
  if (p.has_relu) add(op::Activate{Activation::kRelu, {}, at.hidden, at.hidden});
  const WeightId fc2 = weight(p.fc2);
  add(op::Detect{fc2, weight(p.bias), at.hidden, at.margins});
}

}  // namespace hotset
