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
  PlanBuilder(const ModelConfig& config, const PlanOptions& options)
      : config_(config), exact_(options.exact), observe_(options.observe), predictor_(options.predictor) {
    plan_.max_rows = options.max_rows;
    plan_.max_output_rows = options.max_output_rows;
    plan_.max_positions = options.max_positions;
    plan_.n_vocab = config.n_vocab;
    plan_.kv = KvLayout{config.n_layer, config.n_head_kv, config.head_dim, options.kv_type};
    const int64_t n_q = config.n_head * config.head_dim;
    const int64_t n_kv = config.n_head_kv * config.head_dim;
    x_ = buffer("x", config.n_embd);
    x_norm_ = buffer("x_norm", config.n_embd);
    if (has_rope()) angles_ = buffer("angles", config.n_rot);
    q_ = buffer("q", n_q);
    k_ = buffer("k", n_kv);
    v_ = buffer("v", n_kv);
    attn_ = buffer("attn", n_q);
    y_ = buffer("y", config.n_embd);
    if (observe_) h_ = buffer("h", config.n_ff);
    if (predictor_) margins_ = buffer("margins", config.n_ff);
    if (!exact_) return;
    detected_ = buffer("detected", config.n_ff);
    units_ = unit_list("units");
    if (predictor_) candidates_ = unit_list("candidates");
  }

  Plan build(const Weights& weights) {
    add(op::Embed{weight(weights.token_embd), x_});
    if (has_rope()) {
      plan_.rope_freqs = rope_frequencies(config_, weights);
      add(op::RopeAngles{angles_});
    } else {
      add(op::EmbedPosition{weight(weights.position_embd), x_});
    }
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
      const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
      attention(w, layer);
      feed_forward(w, layer);
    }
    head(weights);
    return std::move(plan_);
  }

 private:
  bool has_rope() const { return config_.arch->positions == Positions::kRope; }

  BufferId buffer(const std::string& name, int64_t n_cols, BufferRows rows = BufferRows::kAll) {
    plan_.buffers.push_back({name, n_cols, rows});
    return {static_cast<int32_t>(plan_.buffers.size()) - 1};
  }
  BufferId unit_list(const std::string& name) {
    const BufferId out = buffer(name, config_.n_ff + 1);
    plan_.buffers.back().kind = BufferKind::kUnits;
    return out;
  }
  // The id of a weight; none for a tensor that the model lacks.
  WeightId weight(const NamedTensor& tensor) {
    if (!tensor) return {};
    plan_.weights.push_back({tensor.name, tensor.view});
    return {static_cast<int32_t>(plan_.weights.size()) - 1};
  }
  void add(const Op& op) { plan_.steps.push_back({0, op}); }

  void norm(const NamedTensor& w, const NamedTensor& bias, BufferId in, BufferId out) {
    const WeightId weight_id = weight(w);
    add(op::Norm{config_.arch->norm, weight_id, weight(bias), config_.norm_eps, in, out});
  }

  void mat_mul(const NamedTensor& w, const NamedTensor& bias, BufferId in, BufferId out) {
    const WeightId weight_id = weight(w);
    add(op::MatMul{weight_id, weight(bias), in, out});
  }

  void rope(BufferId x, int64_t n_head) {
    if (has_rope()) add(op::Rope{config_.arch->rope, n_head, config_.head_dim, config_.n_rot, angles_, x});
  }

  void attention(const LayerWeights& w, int64_t layer) {
    norm(w.attn_norm, w.attn_norm_b, x_, x_norm_);
    mat_mul(w.attn_q, w.attn_q_b, x_norm_, q_);
    mat_mul(w.attn_k, w.attn_k_b, x_norm_, k_);
    mat_mul(w.attn_v, w.attn_v_b, x_norm_, v_);
    rope(q_, config_.n_head);
    rope(k_, config_.n_head_kv);
    add(op::StoreKv{layer, k_, v_});
    const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
    add(op::Attention{layer, config_.n_head, scale, q_, attn_});
    mat_mul(w.attn_output, w.attn_output_b, attn_, y_);
    add(op::Add{x_, y_, x_});
  }

  void feed_forward(const LayerWeights& w, int64_t layer) {
    norm(w.ffn_norm, w.ffn_norm_b, x_, x_norm_);
    if (exact_ && !w.ffn_down_t)
      throw Error(error_text("planner", "exact plan", "ffn_down_t in every layer", w.ffn_down.name,
                             "lay the weights out anew first"));
    if (w.ffn_down_t)
      unit_rows(w, layer);
    else
      standard_layout(w, layer);
    add(op::Add{x_, y_, x_});
  }

  // Units stored as rows: with exact execution the detect matrix decides which of them are computed. An observer wants
  // its products, so that they are computed apart.
  void unit_rows(const LayerWeights& w, int64_t layer) {
    op::SparseFfn ffn{};
    ffn.activation = config_.activation;
    ffn.gate = weight(w.ffn_gate), ffn.gate_bias = weight(w.ffn_gate_b);
    ffn.up = weight(w.ffn_up), ffn.up_bias = weight(w.ffn_up_b);
    ffn.down_t = weight(w.ffn_down_t), ffn.down_bias = weight(w.ffn_down_b);
    ffn.in = x_norm_, ffn.out = y_;
    if (observe_ && !detected_) detected_ = buffer("detected", config_.n_ff);
    const WeightId detect = ffn.gate ? ffn.gate : ffn.up, bias = ffn.gate ? ffn.gate_bias : ffn.up_bias;
    const BufferId margins = predict(layer, bias);
    const BufferId candidates = exact_ ? select_candidates(margins) : BufferId{};
    if (exact_ || observe_) {
      ffn.detected = detected_, ffn.units = units_, ffn.h = h_;
      add(op::Detect{detect, bias, x_norm_, detected_, candidates});
    }
    if (exact_) add(op::SelectUnits{detected_, units_, candidates});
    add(ffn);
    if (observe_) add(op::Observe{layer, x_norm_, detected_, h_, margins});
  }

  // Appends what gives the margins of a layer's units; none without a predictor. `bias` is that of the detect matrix.
  BufferId predict(int64_t layer, WeightId bias) {
    if (!predictor_) return {};
    const Predictor::Layer& p = predictor_->layers()[static_cast<size_t>(layer)];
    if (p.planes) {
      add(op::Predict{p.n_bits, p.z, weight(p.planes), weight(p.low), weight(p.step), weight(p.error), bias, x_norm_,
                      margins_});
      return margins_;
    }
    if (!p.fc1) return {};
    const BufferId hidden = hidden_buffer(p.fc1.view.n_rows);
    mat_mul(p.fc1, {}, x_norm_, hidden);
    if (p.has_relu) add(op::Activate{Activation::kRelu, {}, hidden, hidden});
    mat_mul(p.fc2, p.bias, hidden, margins_);
    return margins_;
  }

  BufferId select_candidates(BufferId margins) {
    if (!margins) return {};
    add(op::SelectUnits{margins, candidates_, {}, UnitSet::kCandidates});
    return candidates_;
  }

  // One buffer for all layers whose predictors have this rank.
  BufferId hidden_buffer(int64_t rank) {
    const std::string name = cat("hidden", rank);
    for (size_t i = 0; i < plan_.buffers.size(); ++i)
      if (plan_.buffers[i].name == name) return {static_cast<int32_t>(i)};
    return buffer(name, rank);
  }

  void standard_layout(const LayerWeights& w, int64_t layer) {
    if (up_.index < 0) {
      if (w.ffn_gate) gate_ = buffer("gate", config_.n_ff);
      up_ = buffer("up", config_.n_ff);
    }
    const BufferId margins = predict(layer, weight(w.ffn_gate ? w.ffn_gate_b : w.ffn_up_b));
    if (w.ffn_gate) mat_mul(w.ffn_gate, w.ffn_gate_b, x_norm_, gate_);
    mat_mul(w.ffn_up, w.ffn_up_b, x_norm_, up_);
    const BufferId h = observe_ ? h_ : up_;
    add(op::Activate{config_.activation, gate_, up_, h});
    if (observe_) add(op::Observe{layer, x_norm_, gate_ ? gate_ : up_, h, margins});
    mat_mul(w.ffn_down, w.ffn_down_b, h, y_);
  }

  void head(const Weights& weights) {
    const BufferId x_out = buffer("x_out", config_.n_embd, BufferRows::kOutput);
    plan_.logits = buffer("logits", config_.n_vocab, BufferRows::kOutput);
    add(op::SelectRows{x_, x_out});
    norm(weights.output_norm, weights.output_norm_b, x_out, x_out);
    mat_mul(weights.output, {}, x_out, plan_.logits);
  }

  const ModelConfig& config_;
  const bool exact_, observe_;
  const Predictor* const predictor_;
  Plan plan_;
  BufferId x_, x_norm_, angles_, q_, k_, v_, attn_, y_, gate_, up_, detected_, units_, h_, margins_, candidates_;
};

}  // namespace

Plan build_plan(const ModelConfig& config, const Weights& weights, const PlanOptions& options) {
  Plan plan = PlanBuilder(config, options).build(weights);
  const std::vector<std::string> problems = lint(plan);
  if (!problems.empty())
    throw Error(error_text("planner", "plan", "no problems", problems[0], "report this with the model's name"));
  return plan;
}

}  // namespace hotset
