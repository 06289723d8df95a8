#include "core/plan_builder.h"

#include <algorithm>

#include "core/error.h"
#include "core/rope.h"

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
  if (config_.has_local_rope()) out.angles_local = buffer(prefix + "angles_local", config_.n_rot);
  out.q = buffer(prefix + "q", n_q);
  out.k = buffer(prefix + "k", n_kv);
  out.v = buffer(prefix + "v", n_kv);
  out.attn = buffer(prefix + "attn", n_q);
  out.attn_y = out.y = buffer(prefix + "y", config_.n_embd);
  out.attn_in = x_norm;
  if (config_.arch->is_parallel) {
    out.attn_in = buffer(prefix + "attn_in", config_.n_embd);
    out.attn_y = buffer(prefix + "attn_y", config_.n_embd);
  }
  return out;
}

WeightId PlanBuilder::weight(const NamedTensor& tensor) {
  if (!tensor) return {};
  plan_.weights.push_back({tensor.name, tensor.view, lane_});
  return {static_cast<int32_t>(plan_.weights.size()) - 1};
}

void PlanBuilder::set_rope_freqs(const NamedTensor& divisors) {
  if (!has_rope()) return;
  plan_.rope_freqs = rope_frequencies(config_, divisors);
  plan_.rope_magnitude = rope_magnitude(config_);
  if (config_.has_local_rope()) plan_.rope_freqs_local = local_rope_frequencies(config_);
}

BufferId PlanBuilder::angles_of(int64_t layer, const Activations& a) {
  const bool is_local = a.angles_local && config_.windows[static_cast<size_t>(layer)] > 0;
  const BufferId out = is_local ? a.angles_local : a.angles;
  if (!out || std::find(angles_made_.begin(), angles_made_.end(), out) != angles_made_.end()) return out;
  add(op::RopeAngles{out, is_local});
  angles_made_.push_back(out);
  return out;
}

void PlanBuilder::embed(const NamedTensor& table, const NamedTensor& proj, const NamedTensor& positions, BufferId x) {
  const BufferId row = proj ? buffer("embedding", table.view.n_cols) : x;
  add(op::Embed{weight(table), row, config_.embedding_scale});
  if (proj) mat_mul(proj, {}, row, x);
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

// Queries or keys after their projection; `norm` is that of their heads, optional.
void PlanBuilder::rotate(const NamedTensor& norm, int64_t n_head, BufferId angles, BufferId x) {
  if (norm) add(op::HeadNorm{weight(norm), n_head, config_.norm_eps, x});
  if (has_rope()) add(op::Rope{config_.arch->rope, n_head, config_.head_dim, config_.n_rot, angles, x});
}

void PlanBuilder::attention(const LayerWeights& w, int64_t layer, const Activations& a) {
  project_qkv(w, layer, a);
  attend(layer, a);
  add_attention(w, a);
}

void PlanBuilder::project_qkv(const LayerWeights& w, int64_t layer, const Activations& a) {
  const BufferId angles = angles_of(layer, a), in = w.ffn_norm ? a.attn_in : a.x_norm;
  if (w.attn_norm) norm(w.attn_norm, w.attn_norm_b, a.x, in);
  mat_mul(w.attn_q, w.attn_q_b, in, a.q);
  mat_mul(w.attn_k, w.attn_k_b, in, a.k);
  mat_mul(w.attn_v, w.attn_v_b, in, a.v);
  rotate(w.attn_q_norm, config_.n_head, angles, a.q);
  rotate(w.attn_k_norm, config_.n_head_kv, angles, a.k);
}

void PlanBuilder::attend(int64_t layer, const Activations& a) {
  add(op::StoreKv{layer, a.k, a.v});
  add(op::Attention{layer, config_.n_head, config_.attention_scale, a.q, a.attn, config_.attention_softcap,
                    config_.windows[static_cast<size_t>(layer)]});
}

void PlanBuilder::add_attention(const LayerWeights& w, const Activations& a) {
  mat_mul(w.attn_output, w.attn_output_b, a.attn, a.attn_y);
  if (w.attn_post_norm) norm(w.attn_post_norm, {}, a.attn_y, a.attn_y);
  if (!config_.arch->is_parallel) add(op::Add{a.x, a.attn_y, a.x});
  if (w.attn_out_norm) norm(w.attn_out_norm, w.attn_out_norm_b, a.x, a.x);
}

void PlanBuilder::begin_ffn(const LayerWeights& w, const Activations& a) {
  if (w.ffn_norm) norm(w.ffn_norm, w.ffn_norm_b, a.x, a.x_norm);
}

void PlanBuilder::end_ffn(const LayerWeights& w, const Activations& a) {
  if (w.ffn_post_norm) norm(w.ffn_post_norm, {}, a.y, a.y);
  if (config_.arch->is_parallel) add(op::Add{a.y, a.attn_y, a.y});
  add(op::Add{a.x, a.y, a.x});
  if (w.layer_out_norm) norm(w.layer_out_norm, w.layer_out_norm_b, a.x, a.x);
}

void PlanBuilder::head(const HeadWeights& w, BufferId x_out, BufferId logits) {
  if (w.norm) norm(w.norm, w.norm_b, x_out, x_out);
  BufferId in = x_out;
  if (w.proj) mat_mul(w.proj, {}, x_out, in = buffer("x_proj", w.proj.view.n_rows, BufferRows::kOutput));
  mat_mul(w.output, {}, in, logits);
  if (config_.logit_softcap > 0) add(op::SoftCap{config_.logit_softcap, logits});
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
