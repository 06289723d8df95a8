#include "core/planner.h"

#include "core/error.h"
#include "core/plan_builder.h"

namespace hotset {
namespace {

// The plan of one lane.
class OneLaneBuilder : private PlanBuilder {
 public:
  OneLaneBuilder(const ModelConfig& config, const PlanOptions& options)
      : PlanBuilder(config, options), observe_(options.observe), predictor_(options.predictor) {
    // Where x is normed after each addition, it is what attention and FFN read.
    const BufferId x = buffer("x", config.n_embd), x_norm = config.norms_after ? x : buffer("x_norm", config.n_embd);
    at_ = activations("", x, x_norm);
    if (observe_) h_ = buffer("h", config.n_ff);
    if (predictor_) margins_ = buffer("margins", config.n_ff);
    if (!exact_) return;
    detected_ = buffer("detected", config.n_ff);
    units_ = unit_list("units", config.n_ff);
    if (predictor_) candidates_ = unit_list("candidates", config.n_ff);
  }

  Plan build(const Weights& weights) {
    embed(weights.token_embd, weights.token_embd_proj, weights.position_embd, at_.x);
    set_rope_freqs(weights.rope_freqs);
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
      const LayerWeights& w = weights.layers[static_cast<size_t>(layer)];
      attention(w, layer, at_);
      feed_forward(w, layer);
    }
    logits(weights);
    return finish();
  }

 private:
  void feed_forward(const LayerWeights& w, int64_t layer) {
    begin_ffn(w, at_);
    if (exact_ && !w.ffn_down_t)
      throw Error(error_text("planner", "exact plan", "ffn_down_t in every layer", w.ffn_down.name,
                             "lay the weights out anew first"));
    if (w.ffn_down_t)
      unit_rows(w, layer);
    else
      standard_layout(w, layer);
    end_ffn(w, at_);
  }

  // Units stored as rows: with exact execution the detect matrix decides which of them are computed. An observer wants
  // its products, so that they are computed apart.
  void unit_rows(const LayerWeights& w, int64_t layer) {
    op::SparseFfn ffn{};
    ffn.activation = config_.activation, ffn.threshold = config_.activation_threshold;
    ffn.gate = weight(w.ffn_gate), ffn.gate_bias = weight(w.ffn_gate_b);
    ffn.up = weight(w.ffn_up), ffn.up_bias = weight(w.ffn_up_b);
    ffn.down_t = weight(w.ffn_down_t), ffn.down_bias = weight(w.ffn_down_b);
    ffn.in = at_.x_norm, ffn.out = at_.y;
    if (observe_ && !detected_) detected_ = buffer("detected", config_.n_ff);
    const WeightId detect = ffn.gate ? ffn.gate : ffn.up, bias = ffn.gate ? ffn.gate_bias : ffn.up_bias;
    const BufferId margins = predict(layer, bias);
    const BufferId candidates = exact_ ? select_candidates(margins) : BufferId{};
    if (exact_ || observe_) {
      ffn.detected = detected_, ffn.units = units_, ffn.h = h_;
      add(op::Detect{detect, bias, at_.x_norm, detected_, candidates});
    }
    if (exact_) add(op::SelectUnits{detected_, units_, candidates});
    add(ffn);
    if (observe_) add(op::Observe{layer, at_.x_norm, detected_, h_, margins});
  }

  // Appends what gives the margins of a layer's units; none without a predictor. `bias` is that of the detect matrix.
  BufferId predict(int64_t layer, WeightId bias) {
    if (!predictor_) return {};
    const Predictor::Layer& p = predictor_->layers()[static_cast<size_t>(layer)];
    if (!p) return {};
    const BufferId in = p.reads_residual ? at_.x : at_.x_norm;
    PlanBuilder::predict(p, bias, {in, p.fc1 ? hidden_buffer(p.fc1.view.n_rows) : BufferId{}, margins_});
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
    if (w.ffn_gate) mat_mul(w.ffn_gate, w.ffn_gate_b, at_.x_norm, gate_);
    mat_mul(w.ffn_up, w.ffn_up_b, at_.x_norm, up_);
    const BufferId h = observe_ ? h_ : up_;
    add(op::Activate{config_.activation, gate_, up_, h, config_.activation_threshold});
    if (observe_) add(op::Observe{layer, at_.x_norm, gate_ ? gate_ : up_, h, margins});
    mat_mul(w.ffn_down, w.ffn_down_b, h, at_.y);
  }

  void logits(const Weights& weights) {
    const BufferId x_out = buffer("x_out", config_.n_embd, BufferRows::kOutput);
    plan_.logits = buffer("logits", config_.n_vocab, BufferRows::kOutput);
    add(op::SelectRows{at_.x, x_out});
    head(weights.head, x_out, plan_.logits);
  }

  const bool observe_;
  const Predictor* const predictor_;
  Activations at_;
  BufferId gate_, up_, detected_, units_, h_, margins_, candidates_;
};

}  // namespace

Plan build_plan(const ModelConfig& config, const Weights& weights, const PlanOptions& options) {
  return OneLaneBuilder(config, options).build(weights);
}

}  // namespace hotset
