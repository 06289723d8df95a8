// What planners share: appends buffers, weights and steps to a plan. Steps and weights go to the lane chosen by on().
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/model_config.h"
#include "core/plan.h"
#include "core/planner.h"
#include "core/weights.h"

namespace hotset {

class PlanBuilder {
 protected:
  // What a lane that has attention works with.
  struct Activations {
    BufferId x, x_norm, angles, q, k, v, attn, y;
    BufferId angles_local;  // of layers with a window, where these rotate by their own base
    BufferId attn_in;       // of parallel layers: what attention reads where it has a norm of its own,
    BufferId attn_y;        // and what it gives
  };

  PlanBuilder(const ModelConfig& config, const PlanOptions& options);

  // The plan. Throws Error when it has problems.
  Plan finish();

  void on(int32_t lane) { lane_ = lane; }
  void add(const Op& op) { plan_.steps.push_back({lane_, op}); }

  // A new buffer of the lane.
  BufferId buffer(const std::string& name, int64_t n_cols, BufferRows rows = BufferRows::kAll);
  BufferId unit_list(const std::string& name, int64_t n_units);
  // x and x_norm are given; `prefix` begins the names of the others.
  Activations activations(const std::string& prefix, BufferId x, BufferId x_norm);
  // The id of a weight; none for a tensor that the lane lacks.
  WeightId weight(const NamedTensor& tensor);

  bool has_rope() const { return config_.arch->positions == Positions::kRope; }
  void set_rope_freqs(const NamedTensor& divisors);
  // The angles that a layer rotates by, none without rotation; made when the first layer of a lane asks for them.
  BufferId angles_of(int64_t layer, const Activations& a);

  // x from the rows of the table, through `proj` where there is one, and positions where they are learned.
  void embed(const NamedTensor& table, const NamedTensor& proj, const NamedTensor& positions, BufferId x);
  void norm(const NamedTensor& w, const NamedTensor& bias, BufferId in, BufferId out);
  void mat_mul(const NamedTensor& w, const NamedTensor& bias, BufferId in, BufferId out);
  // Attention and what is around it; or its three parts: before the keys and values, with them, after them.
  void attention(const LayerWeights& w, int64_t layer, const Activations& a);
  void project_qkv(const LayerWeights& w, int64_t layer, const Activations& a);
  void attend(int64_t layer, const Activations& a);
  void add_attention(const LayerWeights& w, const Activations& a);
  // Around the FFN: its input from x, and its output, a.y, to x. A parallel layer adds attention only then.
  void begin_ffn(const LayerWeights& w, const Activations& a);
  void end_ffn(const LayerWeights& w, const Activations& a);
  // From rows of x to logits.
  void head(const HeadWeights& w, BufferId x_out, BufferId logits);

  // Where a predictor finds a layer's input and puts the margins; `hidden` (fc1's rows) with factors only.
  struct Prediction {
    BufferId in, hidden, margins;
  };
  // Appends what gives the margins of the predictor's units. `bias`: with planes that of their detect rows, optional.
  void predict(const Predictor::Layer& p, WeightId bias, const Prediction& at);

  const ModelConfig& config_;
  const bool exact_;
  Plan plan_;
  int32_t lane_ = kHostLane;

 private:
  void rotate(const NamedTensor& norm, int64_t n_head, BufferId angles, BufferId x);

  std::vector<BufferId> angles_made_;  // buffers that have the step's angles
};

}  // namespace hotset
