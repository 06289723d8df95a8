// Plans: the dump reads like the model, and lint finds what is wrong with a plan.
#include <doctest/doctest.h>

#include <algorithm>

#include "core/error.h"
#include "core/planner.h"
#include "tests/cpp/plan_util.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// A plan and the model whose memory its weights view.
struct ToyPlan {
  std::shared_ptr<const Model> model;
  Plan plan;
};

ToyPlan toy_plan(int64_t n_layer, bool neuron_major) {
  ToyPlan out;
  out.model = load_tiny({.n_layer = n_layer, .dtype = DType::kQ8_0, .neuron_major = neuron_major});
  out.plan = build_plan(out.model->config(), out.model->weights(),
                              {.max_rows = 8, .max_output_rows = 4, .max_positions = 64});
  return out;
}

constexpr char kNeuronMajor[] =
    "host    x = Embed(token_embd.weight Q8_0)\n"
    "host    angles = RopeAngles(positions)\n"
    "host    x_norm = Norm(blk.0.attn_norm.weight F32; x)\n"
    "host    q = MatMul(blk.0.attn_q.weight Q8_0; x_norm)\n"
    "host    k = MatMul(blk.0.attn_k.weight Q8_0; x_norm)\n"
    "host    v = MatMul(blk.0.attn_v.weight Q8_0; x_norm)\n"
    "host    q = Rope(4 heads; angles)\n"
    "host    k = Rope(2 heads; angles)\n"
    "host    kv[0] = StoreKv(k, v)\n"
    "host    attn = Attention(4 heads; q, kv[0])\n"
    "host    y = MatMul(blk.0.attn_output.weight Q8_0; attn)\n"
    "host    x = Add(x, y)\n"
    "host    x_norm = Norm(blk.0.ffn_norm.weight F32; x)\n"
    "host    y = SparseFfn(all units; blk.0.ffn_gate.weight Q8_0, blk.0.ffn_up.weight Q8_0, "
    "blk.0.ffn_down_t.weight Q8_0; x_norm)\n"
    "host    x = Add(x, y)\n"
    "host    x_norm = Norm(blk.1.attn_norm.weight F32; x)\n"
    "host    q = MatMul(blk.1.attn_q.weight Q8_0; x_norm)\n"
    "host    k = MatMul(blk.1.attn_k.weight Q8_0; x_norm)\n"
    "host    v = MatMul(blk.1.attn_v.weight Q8_0; x_norm)\n"
    "host    q = Rope(4 heads; angles)\n"
    "host    k = Rope(2 heads; angles)\n"
    "host    kv[1] = StoreKv(k, v)\n"
    "host    attn = Attention(4 heads; q, kv[1])\n"
    "host    y = MatMul(blk.1.attn_output.weight Q8_0; attn)\n"
    "host    x = Add(x, y)\n"
    "host    x_norm = Norm(blk.1.ffn_norm.weight F32; x)\n"
    "host    y = SparseFfn(all units; blk.1.ffn_gate.weight Q8_0, blk.1.ffn_up.weight Q8_0, "
    "blk.1.ffn_down_t.weight Q8_0; x_norm)\n"
    "host    x = Add(x, y)\n"
    "host    x_out = SelectRows(x)\n"
    "host    x_out = Norm(output_norm.weight F32; x_out)\n"
    "host    logits = MatMul(output.weight Q8_0; x_out)\n";

constexpr char kStandardFfn[] =
    "host    gate = MatMul(blk.1.ffn_gate.weight Q8_0; x_norm)\n"
    "host    up = MatMul(blk.1.ffn_up.weight Q8_0; x_norm)\n"
    "host    up = Activate(gate, up)\n"
    "host    y = MatMul(blk.1.ffn_down.weight Q8_0; up)\n"
    "host    x = Add(x, y)\n"
    "host    x_out = SelectRows(x)\n";

std::vector<WeightId*> weights_of(Op& any) {
  if (auto* o = std::get_if<op::Embed>(&any)) return {&o->table};
  if (auto* o = std::get_if<op::Norm>(&any)) return {&o->weight};
  if (auto* o = std::get_if<op::MatMul>(&any)) return {&o->weight};
  if (auto* o = std::get_if<op::Detect>(&any)) return {&o->weight};
  if (auto* o = std::get_if<op::SparseFfn>(&any)) return {&o->gate, &o->up, &o->down_t};
  return {};
}

TEST_CASE("plan: the dump of a toy model reads like the model") {
  const ToyPlan toy = toy_plan(2, true);
  CHECK(dump(toy.plan) == kNeuronMajor);
  CHECK(lint(toy.plan).empty());
  const ToyPlan standard = toy_plan(2, false);
  CHECK(dump(standard.plan).find(kStandardFfn) != std::string::npos);
  CHECK(lint(standard.plan).empty());
}

TEST_CASE("plan: sizes come from the options, rotary frequencies from the model") {
  const ToyPlan toy = toy_plan(1, true);
  CHECK(toy.plan.max_rows == 8);
  CHECK(toy.plan.max_output_rows == 4);
  CHECK(toy.plan.max_positions == 64);
  CHECK(toy.plan.max_rows_of(toy.plan.logits) == 4);
  CHECK(toy.plan.kv.dtype == DType::kF16);
  REQUIRE(toy.plan.rope_freqs.size() == 8);
  CHECK(toy.plan.rope_freqs[0] == 1.0);
  CHECK(toy.plan.rope_freqs[4] == doctest::Approx(0.01).epsilon(1e-12));
  const auto scaled = load_tiny({.n_rot = 8, .linear_scale = 4});
  CHECK(build_plan(scaled->config(), scaled->weights(), {}).rope_freqs.at(2) ==
        doctest::Approx(0.0025).epsilon(1e-12));
}

// Steps whose loss lint does not see: what they change in place is there for the next reader without them.
const std::vector<std::string> kUnseen = {
    "q = Rope(4 heads; angles)",
    "k = Rope(2 heads; angles)",
    "x_out = Norm(output_norm.weight F32; x_out)",
};

TEST_CASE("plan: lint sees a missing step of any layer, but for those that work in place") {
  for (const bool neuron_major : {true, false}) {
    const ToyPlan toy = toy_plan(3, neuron_major);
    for (size_t i = 0; i < toy.plan.steps.size(); ++i) {
      Plan plan = toy.plan;
      plan.steps.erase(plan.steps.begin() + static_cast<std::ptrdiff_t>(i));
      const std::string step = dump_of(toy.plan, i);
      CAPTURE(step);
      CHECK(lint(plan).empty() == (std::count(kUnseen.begin(), kUnseen.end(), step) > 0));
    }
  }
}

TEST_CASE("plan: lint sees a layer whose keys are not stored, in any layer") {
  const ToyPlan toy = toy_plan(3, true);
  int n_stores = 0;
  for (size_t i = 0; i < toy.plan.steps.size(); ++i) {
    if (!std::holds_alternative<op::StoreKv>(toy.plan.steps[i].op)) continue;
    Plan plan = toy.plan;
    plan.steps.erase(plan.steps.begin() + static_cast<std::ptrdiff_t>(i));
    CHECK_FALSE(lint(plan).empty());
    plan = toy.plan;
    std::get<op::StoreKv>(plan.steps[i].op).layer = 3;
    CHECK_FALSE(lint(plan).empty());
    plan = toy.plan;
    std::swap(plan.steps[i], plan.steps[i + 1]);  // attention first
    CHECK_FALSE(lint(plan).empty());
    ++n_stores;
  }
  CHECK(n_stores == 3);
}

TEST_CASE("plan: lint sees buffers that do not exist or have the wrong number of columns") {
  for (const bool neuron_major : {true, false}) {
    const ToyPlan toy = toy_plan(2, neuron_major);
    for (size_t i = 0; i < toy.plan.steps.size(); ++i) {
      Plan plan = toy.plan;
      for (BufferId* id : buffers_of(plan.steps[i].op)) {
        const BufferId right = *id;
        const std::string step = dump_of(plan, i);
        CAPTURE(step);
        for (int32_t wrong = -1; wrong <= static_cast<int32_t>(plan.buffers.size()); ++wrong) {
          const bool exists = wrong >= 0 && wrong < static_cast<int32_t>(plan.buffers.size());
          if (exists && plan.buffer({wrong}).n_cols == plan.buffer(right).n_cols) continue;
          *id = {wrong};
          CAPTURE(wrong);
          CHECK_FALSE(lint(plan).empty());
        }
        *id = right;
      }
    }
  }
}

TEST_CASE("plan: lint sees weights that do not exist, have no data or the wrong shape") {
  for (const bool neuron_major : {true, false}) {
    const ToyPlan toy = toy_plan(1, neuron_major);
    Plan plan = toy.plan;
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      for (WeightId* id : weights_of(plan.steps[i].op)) {
        const WeightId right = *id;
        const std::string step = dump_of(plan, i);
        CAPTURE(step);
        for (int32_t wrong = -1; wrong <= static_cast<int32_t>(plan.weights.size()); ++wrong) {
          const bool exists = wrong >= 0 && wrong < static_cast<int32_t>(plan.weights.size());
          if (exists && plan.weight({wrong}).n_cols == plan.weight(right).n_cols) {
            const bool is_vector = std::holds_alternative<op::Norm>(plan.steps[i].op);
            const bool is_table = std::holds_alternative<op::Embed>(plan.steps[i].op);
            if (is_vector || is_table || plan.weight({wrong}).n_rows == plan.weight(right).n_rows) continue;
          }
          const auto* ffn = std::get_if<op::SparseFfn>(&plan.steps[i].op);
          if (wrong < 0 && ffn && id == &ffn->gate) continue;  // units without a gate are right too
          *id = {wrong};
          CAPTURE(wrong);
          CHECK_FALSE(lint(plan).empty());
        }
        *id = right;
        TensorView& view = plan.weights[static_cast<size_t>(right.index)].view;
        const TensorView bound = view;
        view.data = nullptr;
        CHECK_FALSE(lint(plan).empty());
        view = bound;
      }
    }
  }
}

TEST_CASE("plan: lint sees operands that are confused") {
  const ToyPlan toy = toy_plan(1, true);
  const auto complains = [&](auto change) {
    Plan plan = toy.plan;
    change(plan);
    return !lint(plan).empty();
  };
  const auto step = [](Plan& plan, size_t i, auto* kind) -> auto& {
    return std::get<std::remove_pointer_t<decltype(kind)>>(plan.steps[i].op);
  };
  CHECK(complains([](Plan& p) { p.logits = {}; }));
  CHECK(complains([](Plan& p) { p.logits = {0}; }));
  CHECK(complains([](Plan& p) { p.n_vocab += 1; }));
  CHECK(complains([&](Plan& p) {  // a product onto its own input
    auto& o = step(p, 10, static_cast<op::MatMul*>(nullptr));
    o.out = o.in;
  }));
  CHECK(complains([&](Plan& p) {
    auto& o = step(p, 13, static_cast<op::SparseFfn*>(nullptr));
    o.out = o.in;
  }));
  CHECK(complains([&](Plan& p) { step(p, 9, static_cast<op::Attention*>(nullptr)).n_head = 3; }));
  CHECK(complains([&](Plan& p) { step(p, 6, static_cast<op::Rope*>(nullptr)).n_rot = 15; }));
  CHECK(complains([&](Plan& p) { p.steps.pop_back(); }));
  CHECK(complains([&](Plan& p) { p.steps.clear(); }));
  CHECK(complains([&](Plan& p) {  // rows that are not selected
    auto& o = step(p, 17, static_cast<op::MatMul*>(nullptr));
    o.in = step(p, 11, static_cast<op::Add*>(nullptr)).out;
  }));
}

// The same with exact execution: Detect and SelectUnits before each SparseFfn.
ToyPlan exact_plan() {
  ToyPlan out = toy_plan(1, true);
  PlanOptions options{.max_rows = 8, .max_output_rows = 4, .max_positions = 64};
  options.exact = true;
  out.plan = build_plan(out.model->config(), out.model->weights(), options);
  return out;
}

template <class T>
T& first_step(Plan& plan) {
  for (Step& step : plan.steps)
    if (T* found = std::get_if<T>(&step.op)) return *found;
  throw Error("no such step");
}

TEST_CASE("plan: lint sees unit lists where floats belong, and activations and blocks that do not fit") {
  const ToyPlan toy = exact_plan();
  CHECK(lint(toy.plan).empty());
  const auto says = [](Plan plan, const std::string& what) {
    const std::vector<std::string> problems = lint(plan);
    return std::any_of(problems.begin(), problems.end(),
                       [&](const std::string& problem) { return problem.find(what) != std::string::npos; });
  };
  for (Plan plan = toy.plan; Step & step : plan.steps) {
    const Op right = step.op;
    for (size_t i = 0; i < buffers_of(step.op).size(); ++i) {
      BufferId* const id = buffers_of(step.op)[i];
      if (!*id || plan.buffer(*id).kind == BufferKind::kUnits) continue;
      plan.buffers.push_back(plan.buffer(*id));  // the same in all but what it holds
      plan.buffers.back().kind = BufferKind::kUnits;
      *id = {static_cast<int32_t>(plan.buffers.size()) - 1};
      CHECK(says(plan, " is no unit list"));
      step.op = right;
      plan.buffers.pop_back();
    }
  }
  Plan plan = toy.plan;
  first_step<op::SparseFfn>(plan).activation = Activation::kSilu;
  CHECK(says(plan, "makes zeros"));
  plan = toy.plan;
  plan.kv.dtype = DType::kQ8_0;  // heads of 16
  CHECK(says(plan, "blocks of the KV cache"));
  plan.kv.head_dim = 32;
  CHECK_FALSE(says(plan, "blocks of the KV cache"));
  plan = toy_plan(1, false).plan;
  CHECK_FALSE(says(plan, "dReLU"));
  first_step<op::Activate>(plan).activation = Activation::kDRelu;
  CHECK_FALSE(says(plan, "dReLU"));
  first_step<op::Activate>(plan).gate = {};
  CHECK(says(plan, "dReLU has a gate"));
}

TEST_CASE("plan: exact execution needs units as rows in every layer") {
  const auto model = load_tiny({.n_layer = 2, .neuron_major = true});
  const auto standard = load_tiny({.n_layer = 2, .neuron_major = false});
  Weights weights = model->weights();
  weights.layers[1].ffn_down = standard->weights().layers[1].ffn_down;
  weights.layers[1].ffn_down_t = {};
  CHECK(!build_plan(model->config(), weights, {}).steps.empty());
  PlanOptions options;
  options.exact = true;
  CHECK_THROWS_WITH_AS(build_plan(model->config(), weights, options), doctest::Contains("blk.1.ffn_down.weight"),
                       Error);
}

}  // namespace
