#include "core/planner.h"

#include <cmath>

#include "core/error.h"

namespace hotset {
namespace {

// Radians per position of each rotated pair: base^(-2i/n_rot), divided by the model's scaling.
std::vector<double> rope_frequencies(const ModelConfig& config, const Weights& weights) {
  std::vector<double> out(static_cast<size_t>(config.n_rot / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config.n_rot);
    out[i] = std::pow(static_cast<double>(config.rope_freq_base), exponent) / static_cast<double>(config.rope_scale);
    if (!weights.rope_freqs) continue;
    out[i] /= static_cast<double>(reinterpret_cast<const float*>(weights.rope_freqs.view.data)[i]);
  }
  return out;
}

// Appends buffers, weights and steps of one lane to a plan.
class PlanBuilder {
 public:
  PlanBuilder(const ModelConfig& config, const PlanOptions& options) : config_(config) {
    plan_.max_rows = options.max_rows;
    plan_.max_output_rows = options.max_output_rows;
    plan_.max_positions = options.max_positions;
    plan_.n_vocab = config.n_vocab;
    plan_.kv = KvLayout{config.n_layer, config.n_head_kv, config.head_dim, options.kv_type};
    const int64_t n_q = config.n_head * config.head_dim;
    const int64_t n_kv = config.n_head_kv * config.head_dim;
    x_ = buffer("x", config.n_embd);
    x_norm_ = buffer("x_norm", config.n_embd);
    angles_ = buffer("angles", config.n_rot);
    q_ = buffer("q", n_q);
    k_ = buffer("k", n_kv);
    v_ = buffer("v", n_kv);
    attn_ = buffer("attn", n_q);
    y_ = buffer("y", config.n_embd);
  }

  Plan build(const Weights& weights) {
    plan_.rope_freqs = rope_frequencies(config_, weights);
    add(op::Embed{weight(weights.token_embd), x_});
    add(op::RopeAngles{angles_});
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
      const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
      attention(w, layer);
      feed_forward(w);
    }
    head(weights);
    return std::move(plan_);
  }

 private:
  BufferId buffer(const std::string& name, int64_t n_cols, BufferRows rows = BufferRows::kAll) {
    plan_.buffers.push_back({name, n_cols, rows});
    return {static_cast<int32_t>(plan_.buffers.size()) - 1};
  }
  WeightId weight(const NamedTensor& tensor) {
    plan_.weights.push_back({tensor.name, tensor.view});
    return {static_cast<int32_t>(plan_.weights.size()) - 1};
  }
  void add(const Op& op) { plan_.steps.push_back({0, op}); }

  void norm(const NamedTensor& w, BufferId in, BufferId out) {
    add(op::Norm{config_.arch->norm, weight(w), config_.norm_eps, in, out});
  }

  void rope(BufferId x, int64_t n_head) {
    add(op::Rope{config_.arch->rope, n_head, config_.head_dim, config_.n_rot, angles_, x});
  }

  void attention(const LayerWeights& w, int64_t layer) {
    norm(w.attn_norm, x_, x_norm_);
    add(op::MatMul{weight(w.attn_q), x_norm_, q_});
    add(op::MatMul{weight(w.attn_k), x_norm_, k_});
    add(op::MatMul{weight(w.attn_v), x_norm_, v_});
    rope(q_, config_.n_head);
    rope(k_, config_.n_head_kv);
    add(op::StoreKv{layer, k_, v_});
    const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
    add(op::Attention{layer, config_.n_head, scale, q_, attn_});
    add(op::MatMul{weight(w.attn_output), attn_, y_});
    add(op::Add{x_, y_, x_});
  }

  void feed_forward(const LayerWeights& w) {
    norm(w.ffn_norm, x_, x_norm_);
    if (w.ffn_down_t) {
      add(op::SparseFfn{config_.activation, weight(w.ffn_gate), weight(w.ffn_up), weight(w.ffn_down_t), x_norm_, y_});
    } else {
      if (gate_.index < 0) gate_ = buffer("gate", config_.n_ff), up_ = buffer("up", config_.n_ff);
      add(op::MatMul{weight(w.ffn_gate), x_norm_, gate_});
      add(op::MatMul{weight(w.ffn_up), x_norm_, up_});
      add(op::GatedActivation{config_.activation, gate_, up_, gate_});
      add(op::MatMul{weight(w.ffn_down), gate_, y_});
    }
    add(op::Add{x_, y_, x_});
  }

  void head(const Weights& weights) {
    const BufferId x_out = buffer("x_out", config_.n_embd, BufferRows::kOutput);
    plan_.logits = buffer("logits", config_.n_vocab, BufferRows::kOutput);
    add(op::SelectRows{x_, x_out});
    norm(weights.output_norm, x_out, x_out);
    add(op::MatMul{weight(weights.output), x_out, plan_.logits});
  }

  const ModelConfig& config_;
  Plan plan_;
  BufferId x_, x_norm_, angles_, q_, k_, v_, attn_, y_, gate_, up_;
};

}  // namespace

Plan build_dense_plan(const ModelConfig& config, const Weights& weights, const PlanOptions& options) {
  Plan plan = PlanBuilder(config, options).build(weights);
  const std::vector<std::string> problems = lint(plan);
  if (!problems.empty())
    throw Error(error_text("planner", "plan", "no problems", problems[0], "report this with the model's name"));
  return plan;
}

}  // namespace hotset
