// Plans of families whose layers are not plain: head norms, post-norms, windows, soft caps, parallel layers.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/planner.h"
#include "core/rope.h"
#include "tests/cpp/plan_util.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// A plan and the model whose memory its weights view.
struct FamilyPlan {
  std::shared_ptr<const Model> model;
  Plan plan;
};

FamilyPlan plan_of(const TinySpec& spec) {
  FamilyPlan out;
  out.model = load_tiny(spec);
  out.plan = build_plan(out.model->config(), out.model->weights(),
                        {.max_rows = 8, .max_output_rows = 4, .max_positions = 64});
  return out;
}

TinySpec gemma3() {
  return {.arch = "gemma3", .n_layer = 6, .activation = Activation::kGeluTanh, .window = 9, .softcap = 30};
}

TinySpec falcon() {
  return {.arch = "falcon", .n_layer = 2, .activation = Activation::kGelu, .own_ffn_norm = true};
}

constexpr char kGemma3Layer[] =
    "host    x_norm = Norm(blk.0.attn_norm.weight F32; x)\n"
    "host    q = MatMul(blk.0.attn_q.weight F32; x_norm)\n"
    "host    k = MatMul(blk.0.attn_k.weight F32; x_norm)\n"
    "host    v = MatMul(blk.0.attn_v.weight F32; x_norm)\n"
    "host    q = HeadNorm(blk.0.attn_q_norm.weight F32, 4 heads; q)\n"
    "host    q = Rope(4 heads; angles_local)\n"
    "host    k = HeadNorm(blk.0.attn_k_norm.weight F32, 2 heads; k)\n"
    "host    k = Rope(2 heads; angles_local)\n"
    "host    kv[0] = StoreKv(k, v)\n"
    "host    attn = Attention(4 heads, window 9, cap 30; q, kv[0])\n"
    "host    y = MatMul(blk.0.attn_output.weight F32; attn)\n"
    "host    y = Norm(blk.0.post_attention_norm.weight F32; y)\n"
    "host    x = Add(x, y)\n"
    "host    x_norm = Norm(blk.0.ffn_norm.weight F32; x)\n"
    "host    y = SparseFfn(all units; blk.0.ffn_gate.weight F32, blk.0.ffn_up.weight F32, "
    "blk.0.ffn_down_t.weight F32; x_norm)\n"
    "host    y = Norm(blk.0.post_ffw_norm.weight F32; y)\n"
    "host    x = Add(x, y)\n";

constexpr char kFalconLayer[] =
    "host    attn_in = LayerNorm(blk.0.attn_norm_2.weight F32 + blk.0.attn_norm_2.bias; x)\n"
    "host    q = MatMul(blk.0.attn_qkv.weight[0:64] F32; attn_in)\n"
    "host    k = MatMul(blk.0.attn_qkv.weight[64:96] F32; attn_in)\n"
    "host    v = MatMul(blk.0.attn_qkv.weight[96:128] F32; attn_in)\n"
    "host    q = Rope(4 heads; angles)\n"
    "host    k = Rope(2 heads; angles)\n"
    "host    kv[0] = StoreKv(k, v)\n"
    "host    attn = Attention(4 heads; q, kv[0])\n"
    "host    attn_y = MatMul(blk.0.attn_output.weight F32; attn)\n"
    "host    x_norm = LayerNorm(blk.0.attn_norm.weight F32 + blk.0.attn_norm.bias; x)\n"
    "host    y = SparseFfn(all units; blk.0.ffn_up.weight F32, blk.0.ffn_down_t.weight F32; x_norm)\n"
    "host    y = Add(y, attn_y)\n"
    "host    x = Add(x, y)\n";

TEST_CASE("family plans: the dump reads like the layer") {
  const std::string gemma = dump(plan_of(gemma3()).plan);
  CHECK(gemma.find("x = Embed(token_embd.weight F32, times 8)\n") != std::string::npos);
  CHECK(gemma.find("angles_local = RopeAngles(local positions)\n" + std::string(kGemma3Layer)) != std::string::npos);
  CHECK(gemma.find("q = Rope(4 heads; angles)\n") != std::string::npos);  // the sixth layer
  CHECK(gemma.find("attn = Attention(4 heads, cap 30; q, kv[5])\n") != std::string::npos);
  CHECK(gemma.find("logits = SoftCap(30; logits)\n") != std::string::npos);
  CHECK(dump(plan_of(falcon()).plan).find(kFalconLayer) != std::string::npos);
  TinySpec one_norm = falcon();
  one_norm.own_ffn_norm = false;
  const std::string shared = dump(plan_of(one_norm).plan);
  CHECK(shared.find("x_norm = LayerNorm(blk.0.attn_norm.weight F32 + blk.0.attn_norm.bias; x)\n") != std::string::npos);
  CHECK(shared.find("attn_in") == std::string::npos);
}

// What works in place is not missed: its value is there for the next reader without it.
TEST_CASE("family plans: lint sees every missing step, but for those that work in place") {
  for (const TinySpec& spec : {gemma3(), falcon()}) {
    const FamilyPlan family = plan_of(spec);
    CHECK(lint(family.plan).empty());
    for (size_t i = 0; i < family.plan.steps.size(); ++i) {
      const std::string step = dump_of(family.plan, i);
      CAPTURE(step);
      const Op& op = family.plan.steps[i].op;
      const auto* norm = std::get_if<op::Norm>(&op);
      const bool in_place = std::holds_alternative<op::HeadNorm>(op) || std::holds_alternative<op::Rope>(op) ||
                            std::holds_alternative<op::SoftCap>(op) || (norm && norm->in == norm->out);
      CHECK(lint(without_step(family.plan, i)).empty() == in_place);
    }
  }
}

TEST_CASE("family plans: lint sees buffers with the wrong number of columns") {
  for (TinySpec spec : {gemma3(), falcon()}) {
    spec.n_layer = 1;
    const FamilyPlan family = plan_of(spec);
    for (size_t i = 0; i < family.plan.steps.size(); ++i) {
      Plan plan = family.plan;
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

template <class T>
T& first_step(Plan& plan) {
  for (Step& step : plan.steps)
    if (T* found = std::get_if<T>(&step.op)) return *found;
  throw Error("no such step");
}

TEST_CASE("family plans: lint sees numbers that mean nothing, and weights of the wrong length") {
  const FamilyPlan family = plan_of(gemma3());
  const auto complains = [&](auto change) {
    Plan plan = family.plan;
    change(plan);
    return !lint(plan).empty();
  };
  CHECK_FALSE(complains([](Plan&) {}));
  for (const float bad : {0.0f, -1.0f, std::nanf(""), INFINITY}) {
    CHECK(complains([=](Plan& p) { first_step<op::Embed>(p).scale = bad; }));
    CHECK(complains([=](Plan& p) { first_step<op::SoftCap>(p).cap = bad; }));
    if (bad != 0) CHECK(complains([=](Plan& p) { first_step<op::Attention>(p).softcap = bad; }));
    if (bad != 0) CHECK(complains([=](Plan& p) { first_step<op::SparseFfn>(p).threshold = bad; }));
  }
  CHECK(complains([](Plan& p) { first_step<op::Attention>(p).window = -1; }));
  CHECK(complains([](Plan& p) { first_step<op::HeadNorm>(p).n_head = 3; }));
  CHECK(complains([](Plan& p) { first_step<op::HeadNorm>(p).weight = first_step<op::Norm>(p).weight; }));
  CHECK(complains([](Plan& p) { first_step<op::HeadNorm>(p).weight = {}; }));
  CHECK(complains([](Plan& p) { p.rope_freqs_local.pop_back(); }));
  CHECK(complains([](Plan& p) { p.rope_freqs.pop_back(); }));
}

TEST_CASE("rope: YaRN keeps fast pairs, slows slow ones by the factor, and corrects the magnitude") {
  ModelConfig config;
  config.n_rot = 64, config.rope_freq_base = 10000;
  const std::vector<double> plain = rope_frequencies(config, {});
  CHECK(rope_magnitude(config) == 1);
  config.yarn = {.factor = 4, .n_ctx_original = 4096};
  const std::vector<double> scaled = rope_frequencies(config, {});
  REQUIRE(scaled.size() == 32);
  // A pair with frequency f turns 4096 f / 2 pi times over the original context.
  for (size_t i = 0; i < plain.size(); ++i) {
    CAPTURE(i);
    const double turns = 4096 * plain[i] / (2 * std::acos(-1.0));
    const double ratio = plain[i] / scaled[i];
    CHECK(ratio >= 1 - 1e-12);
    CHECK(ratio <= 4 + 1e-12);
    if (turns > 32 * 1.4) CHECK(ratio == doctest::Approx(1));  // a border is moved to a whole pair, a factor of 1.34
    if (turns < 1 / 1.4) CHECK(ratio == doctest::Approx(4));
    if (i > 0) CHECK(ratio >= plain[i - 1] / scaled[i - 1] - 1e-12);
  }
  CHECK(plain.back() / scaled.back() == doctest::Approx(4));
  CHECK(rope_magnitude(config) == doctest::Approx(1 + 0.1 * std::log(4.0)));
  config.rope_freq_base_local = 100;
  CHECK(local_rope_frequencies(config)[16] == doctest::Approx(0.1));
}

}  // namespace
