// Plans of two lanes: every placement gives a plan that lint finds right, and none of its steps can be spared.
#include <doctest/doctest.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "core/devices.h"
#include "core/error.h"
#include "core/executor.h"
#include "core/hybrid_planner.h"
#include "tests/cpp/families.h"
#include "tests/cpp/placed_plans.h"
#include "tests/cpp/plan_util.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;

constexpr Family kFamilies[] = {{"llama", Activation::kRelu},     {"llama", Activation::kDRelu},
                                {"llama", Activation::kSilu},     {"arcee", Activation::kRelu2},
                                {"nemotron", Activation::kRelu2}, {"opt", Activation::kRelu},
                                {"gemma3", Activation::kFatRelu}, {"falcon", Activation::kRelu, true},
                                {"opt", Activation::kRelu, true}};

constexpr size_t kNPlainFamilies = 6;

// Calls check(plan, variant) for families, modes and variants.
template <class F>
void for_all_plans(F check) {
  for (const Family& family : kFamilies)
    for (const bool exact : {true, false}) {
      if (kFewCases && (family.activation != Activation::kDRelu || !exact)) continue;
      if (exact && !is_sparse(family.activation)) continue;
      TinySpec spec = spec_of(family, DType::kF32);
      spec.n_layer = 3;
      const auto model = load_tiny(spec);
      size_t n_variants = 0;
      for (const Variant& variant : variants(model->config().n_ff, exact)) {
        // Of families whose layers alone are of another kind, every fifth is enough.
        if (&family >= kFamilies + kNPlainFamilies && n_variants++ % 5 != 0) continue;
        INFO(cat(family.arch, " ", activation_name(family.activation), exact ? " exact: " : " dense: "),
             text_of(variant));
        check(build_plan(model->config(), place_weights(*model, variant.layers, variant.head), options_of(exact)),
              variant);
      }
    }
}

Plan example(const LayerPlacement& layer, Place head, bool exact = true) {
  static const auto model = load_tiny({.n_layer = 1, .dtype = DType::kQ8_0});
  return build_plan(model->config(), place_weights(*model, {layer}, head), options_of(exact));
}

TEST_CASE("hybrid plan: the dump reads like the figure of the paper") {
  const std::string text = dump(example({32, DetectPlace::kDevice, kDevice}, kDevice));
  CHECK(text ==
        "host                shared_x = Embed(token_embd.weight Q8_0)\n"
        "device  angles = RopeAngles(positions)\n"
        "host                Signal(x 0)\n"
        "device  Wait(x 0)\n"
        "device  x = Copy(shared_x)\n"
        "device  x_norm = Norm(blk.0.attn_norm.weight F32; x)\n"
        "device  q = MatMul(blk.0.attn_q.weight Q8_0; x_norm)\n"
        "device  k = MatMul(blk.0.attn_k.weight Q8_0; x_norm)\n"
        "device  v = MatMul(blk.0.attn_v.weight Q8_0; x_norm)\n"
        "device  q = Rope(4 heads; angles)\n"
        "device  k = Rope(2 heads; angles)\n"
        "device  kv[0] = StoreKv(k, v)\n"
        "device  attn = Attention(4 heads; q, kv[0])\n"
        "device  y = MatMul(blk.0.attn_output.weight Q8_0; attn)\n"
        "device  x = Add(x, y)\n"
        "device  x_norm = Norm(blk.0.ffn_norm.weight F32; x)\n"
        "device  shared_x_norm = Copy(x_norm)\n"
        "device  detected = Detect(blk.0.ffn_gate.weight Q8_0; x_norm)\n"
        "device  shared_cold = SelectUnits(detected[32:96])\n"
        "device  Signal(fork 0)\n"
        "device  hot = SelectUnits(detected[0:32])\n"
        "device  y_hot = SparseFfn(hot by detected; blk.0.ffn_gate.weight[:32] Q8_0, blk.0.ffn_up.weight Q8_0, "
        "blk.0.ffn_down_t.weight Q8_0; x_norm)\n"
        "host                Wait(fork 0)\n"
        "host                shared_y = SparseFfn(shared_cold; blk.0.ffn_up.weight Q8_0, blk.0.ffn_down_t.weight Q8_0; "
        "shared_x_norm)\n"
        "host                Signal(join 0)\n"
        "device  Wait(join 0)\n"
        "device  y_back = Copy(shared_y)\n"
        "device  y = MergeSums(y_hot, y_back)\n"
        "device  x = Add(x, y)\n"
        "device  x_out = SelectRows(x)\n"
        "device  x_out = Norm(output_norm.weight F32; x_out)\n"
        "device  logits = MatMul(output.weight Q8_0; x_out)\n"
        "device  shared_logits = Copy(logits)\n"
        "device  Signal(logits)\n"
        "host                Wait(logits)\n");
}

TEST_CASE("hybrid plan: every placement of every family is right") {
  for_all_plans([](const Plan& plan, const Variant& variant) {
    CHECK(lint(plan).empty());
    for (size_t i = 0; i < variant.layers.size(); ++i) {
      const int32_t lane = variant.layers[i].kv() == kDevice ? kDeviceLane : kHostLane;
      CHECK(plan.kv_lane(static_cast<int64_t>(i)) == lane);
    }
    const bool any_on_device =
        variant.head == kDevice || std::any_of(variant.layers.begin(), variant.layers.end(), [](const auto& layer) {
          return layer.attention == kDevice || layer.detect != DetectPlace::kHost;
        });
    CHECK(plan.n_lanes() == (any_on_device ? 2 : 1));
  });
}

TEST_CASE("hybrid plan: lint misses every step, but for those that work in place") {
  for_all_plans([](const Plan& plan, const Variant&) {
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      if (lint(without_step(plan, i)).empty() == works_in_place(plan.steps[i])) continue;
      const std::string step = dump_of(plan, i);
      FAIL_CHECK("step ", i, ": ", step);
    }
  });
}

TEST_CASE("hybrid plan: no flag can be spared") {
  for_all_plans([](const Plan& plan, const Variant&) {
    for (size_t i = 0; i < plan.flags.size(); ++i)
      if (lint(without_flag(plan, static_cast<int32_t>(i))).empty()) FAIL_CHECK("flag ", plan.flags[i]);
  });
}

bool touches_shared(const Plan& plan, Step step) {
  for (const BufferId* id : buffers_of(step.op))
    if (*id && plan.buffer(*id).lane == kSharedLane) return true;
  return false;
}

// The step's neighbour on its lane, after it or before it; plan.steps.size() for none.
size_t neighbour(const Plan& plan, size_t step, int direction) {
  for (size_t i = step + static_cast<size_t>(direction); i < plan.steps.size(); i += static_cast<size_t>(direction))
    if (plan.steps[i].lane == plan.steps[step].lane) return i;
  return plan.steps.size();
}

TEST_CASE("hybrid plan: no Signal can come earlier and no Wait later than the step that needs it") {
  int64_t n_moved = 0;
  for_all_plans([&](const Plan& plan, const Variant&) {
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      const bool is_signal = std::holds_alternative<op::Signal>(plan.steps[i].op);
      if (!is_signal && !std::holds_alternative<op::Wait>(plan.steps[i].op)) continue;
      const size_t next = neighbour(plan, i, is_signal ? -1 : 1);
      if (next >= plan.steps.size() || !touches_shared(plan, plan.steps[next])) continue;
      Plan moved = plan;
      std::swap(moved.steps[i].op, moved.steps[next].op);
      if (lint(moved).empty()) FAIL_CHECK("step ", i, ": ", dump_of(plan, i));
      ++n_moved;
    }
  });
  CHECK(n_moved > (kFewCases ? 100 : 1000));
}

// Whether a shared buffer is used by the host alone, so that it might be its own.
bool is_used_by_host_alone(const Plan& plan, BufferId id) {
  if (plan.buffer(id).lane != kSharedLane) return false;
  return std::all_of(plan.steps.begin(), plan.steps.end(), [&](Step step) {
    const std::vector<BufferId*> ids = buffers_of(step.op);
    return step.lane == kHostLane || std::none_of(ids.begin(), ids.end(), [&](BufferId* each) { return *each == id; });
  });
}

TEST_CASE("hybrid plan: lint sees steps, buffers and weights of the wrong lane") {
  for (const LayerPlacement& layer : layer_choices(96, true)) {
    const Plan plan = example(layer, kDevice);
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      Plan wrong = plan;
      wrong.steps[i].lane = 1 - wrong.steps[i].lane;
      CHECK_FALSE(lint(wrong).empty());
      wrong.steps[i].lane = kMaxLanes;
      CHECK_FALSE(lint(wrong).empty());
    }
    for (size_t i = 0; i < plan.buffers.size(); ++i)
      for (const int32_t lane : {kHostLane, kDeviceLane, kSharedLane}) {
        Plan wrong = plan;
        wrong.buffers[i].lane = lane;
        // Nobody minds when what one lane touches could be touched by both.
        if (lane == plan.buffers[i].lane || lane == kSharedLane) continue;
        CAPTURE(plan.buffers[i].name);
        const bool may_be = lane == kHostLane && is_used_by_host_alone(plan, {static_cast<int32_t>(i)});
        CHECK(lint(wrong).empty() == may_be);
      }
    for (size_t i = 0; i < plan.weights.size(); ++i) {
      Plan wrong = plan;
      wrong.weights[i].lane = 1 - wrong.weights[i].lane;
      CHECK_FALSE(lint(wrong).empty());
    }
    Plan wrong = plan;
    wrong.kv_lanes[0] = 1 - wrong.kv_lanes[0];
    CHECK_FALSE(lint(wrong).empty());
    wrong.kv_lanes.push_back(kHostLane);
    CHECK_FALSE(lint(wrong).empty());
  }
}

// What crosses between the lanes in one layer: values of vectors, lists, and flags.
struct Traffic {
  int64_t to_host = 0, to_device = 0, n_lists = 0, n_flags = 0;
  bool operator==(const Traffic&) const = default;
};

// Everything from the layer's ffn_norm to its last Add: between layers nothing crosses when their attention is on one
// side.
Traffic traffic_of_ffn(const Plan& plan) {
  Traffic out;
  bool in_ffn = false;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const std::string text = dump_of(plan, i);
    if (text.find("ffn_norm") != std::string::npos) in_ffn = true;
    if (text.find("SelectRows") != std::string::npos) return out;
    if (!in_ffn) continue;
    if (const auto* copy = std::get_if<op::Copy>(&plan.steps[i].op)) {
      int64_t& values = plan.buffer(copy->to).lane == kSharedLane ? out.to_host : out.to_device;
      values += plan.buffer(copy->to).n_cols;
    }
    const auto* select = std::get_if<op::SelectUnits>(&plan.steps[i].op);
    if (select && plan.buffer(select->out).lane == kSharedLane) ++out.n_lists;
    if (std::holds_alternative<op::Signal>(plan.steps[i].op)) ++out.n_flags;
  }
  return out;
}

TEST_CASE("hybrid plan: a layer has one fork and one join, and one vector crosses each way") {
  const int64_t n = 64, none = 0;  // n_embd of the example
  const auto traffic = [](int64_t n_hot, DetectPlace detect, Place attention, bool exact = true) {
    return traffic_of_ffn(example({n_hot, detect, attention}, attention, exact));
  };
  for (const Place side : {kDevice, kHost}) {
    CHECK(traffic(32, DetectPlace::kSplit, side) == Traffic{n, n, 0, 2});
    CHECK(traffic(32, DetectPlace::kSplit, side, false) == Traffic{n, n, 0, 2});
  }
  CHECK(traffic(32, DetectPlace::kDevice, kDevice) == Traffic{n, n, 1, 2});
  CHECK(traffic(0, DetectPlace::kDevice, kDevice) == Traffic{n, n, 1, 2});
  CHECK(traffic(96, DetectPlace::kDevice, kDevice) == Traffic{none, none, 0, 0});  // all hot
  CHECK(traffic(96, DetectPlace::kDevice, kDevice, false) == Traffic{none, none, 0, 0});
  CHECK(traffic(0, DetectPlace::kHost, kDevice) == Traffic{n, n, 0, 2});  // all cold
  CHECK(traffic(0, DetectPlace::kHost, kHost) == Traffic{none, none, 0, 0});
  CHECK(traffic(96, DetectPlace::kDevice, kHost) == Traffic{n, n, 0, 2});
  CHECK(traffic(0, DetectPlace::kDevice, kHost) == Traffic{none, n, 1, 2});  // only the list comes back
  CHECK(traffic(32, DetectPlace::kDevice, kHost) == Traffic{n, n, 1, 3});    // the list before the sums
}

TEST_CASE("hybrid plan: the residual moves only where neighbours' attention is on different sides") {
  const auto model = load_tiny({.n_layer = 6});
  const LayerPlacement host{0, DetectPlace::kHost, kHost}, device{96, DetectPlace::kDevice, kDevice};
  const auto n_moves = [&](const Layers& layers, Place head) {
    const Plan plan = build_plan(model->config(), place_weights(*model, layers, head), options_of(true));
    return std::count_if(plan.flags.begin(), plan.flags.end(), [](const std::string& name) { return name[0] == 'x'; });
  };
  CHECK(n_moves({host, host, host, host, host, host}, kHost) == 0);
  CHECK(n_moves({device, device, device, device, device, device}, kDevice) == 1);
  CHECK(n_moves({host, host, device, device, device, device}, kDevice) == 1);
  CHECK(n_moves({device, device, device, host, host, host}, kHost) == 2);
  CHECK(n_moves({device, host, device, host, device, host}, kDevice) == 7);
}

TEST_CASE("hybrid plan: what does not go together is refused") {
  const auto model = load_tiny({.n_layer = 1});
  const auto refuses = [&](const PlacedWeights& weights, const PlanOptions& options, const char* what) {
    CHECK_THROWS_WITH_AS(build_plan(model->config(), weights, options), doctest::Contains(what), Error);
  };
  const PlacedWeights good = place_weights(*model, {{32, DetectPlace::kSplit, kDevice}}, kDevice);
  PlacedWeights bad = good;
  bad.layers.clear();
  refuses(bad, options_of(true), "layers");
  for (const int64_t n_hot : {-1, 31, 97}) {
    bad = good;
    bad.layers[0].place.n_hot = n_hot;
    refuses(bad, options_of(true), "placement of layer 0");
  }
  bad = good;
  bad.layers[0].place.detect = DetectPlace::kHost;
  refuses(bad, options_of(true), "without detect rows");
  bad.layers[0].place.detect = DetectPlace::kDevice;
  refuses(bad, options_of(true), "detect of the device");
  bad = good;
  bad.layers[0].host.ffn_up = {};
  refuses(bad, options_of(true), "ffn_up of the host");
  refuses(place_weights(*model, {{32, DetectPlace::kDevice, kDevice}}, kDevice), options_of(false), "mode dense");
}

// A CPU device that computes on a thread of its own, as an accelerator does.
class AsyncCpu final : public Device {
 public:
  DeviceInfo info() const override { return cpu_->info(); }
  std::string why_unsupported(const Op& op, const Plan& plan) const override { return cpu_->why_unsupported(op, plan); }
  std::unique_ptr<DeviceMemory> alloc(size_t n_bytes) override { return cpu_->alloc(n_bytes); }
  std::unique_ptr<DeviceMemory> alloc_shared(size_t n_bytes) override { return cpu_->alloc_shared(n_bytes); }
  void upload(std::byte* at, const std::byte* from, size_t n_bytes) override { cpu_->upload(at, from, n_bytes); }
  void download(const std::byte* at, std::byte* to, size_t n_bytes) override { cpu_->download(at, to, n_bytes); }
  uint64_t free_bytes() const override { return cpu_->free_bytes(); }
  std::unique_ptr<Program> compile(const Plan& plan, int32_t lane, const SharedState& shared) override {
    return cpu_->compile(plan, lane, shared);
  }
  void launch(Program& program, const StepParams& params) override {
    thread_ = std::thread([&program, &params, this] {
      try {
        cpu_->launch(program, params);
      } catch (...) {
        error_ = std::current_exception();
      }
    });
  }
  void synchronize() override {
    if (thread_.joinable()) thread_.join();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  std::unique_ptr<Device> cpu_ = make_cpu_device({.n_threads = 1});
  std::thread thread_;
  std::exception_ptr error_;
};

// Logits of a prompt of five tokens and of three more, one by one.
Logits logits_of(const Plan& plan) {
  const auto cpu = make_cpu_device({.n_threads = 2});
  AsyncCpu device;
  std::vector<Device*> devices{cpu.get()};
  if (plan.n_lanes() > 1) devices.push_back(&device);
  Executor executor(devices, plan, std::chrono::seconds(20));
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  std::array<std::vector<std::byte*>, kMaxLanes> blocks;
  SequenceBlocks sequence;
  for (int32_t lane = 0; lane < kMaxLanes; ++lane) {
    memory.push_back(cpu->alloc(std::max<size_t>(64, plan.kv_of(lane).block_bytes())));
    blocks[static_cast<size_t>(lane)] = {memory.back()->data()};
    sequence.blocks[static_cast<size_t>(lane)] = &blocks[static_cast<size_t>(lane)];
  }
  Logits out;
  for (const auto& [first, n] : {std::pair{0, 5}, {5, 1}, {6, 1}, {7, 1}}) {
    StepParams params;
    params.sequences = {sequence};
    for (int32_t i = first; i < first + n; ++i) params.rows.push_back({17 * i % 200 + 40, i, 0});
    params.output_rows = {n - 1};
    executor.run(params);
    out.insert(out.end(), executor.logits(), executor.logits() + plan.n_vocab);
  }
  return out;
}

// Whether the CPU has all ops of the plan.
bool runs(const Plan& plan) {
  const auto cpu = make_cpu_device({.n_threads = 1});
  return std::all_of(plan.steps.begin(), plan.steps.end(),
                     [&](const Step& step) { return cpu->why_unsupported(step.op, plan).empty(); });
}

TEST_CASE("hybrid plan: logits equal those of one lane bit for bit, wherever units, attention and head are") {
  int64_t n_run = 0;
  for (const Family& family : kFamilies)
    for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_K}) {
      if ((kFewCases || &family != kFamilies) && dtype != DType::kQ8_0) continue;
      if (kFewCases && &family >= kFamilies + kNPlainFamilies) continue;
      for (const bool exact : {true, false}) {
        if (exact && !is_sparse(family.activation)) continue;
        TinySpec spec = spec_of(family, dtype);
        spec.n_layer = 3;
        const auto model = load_tiny(spec);
        const Logits expected = logits_of(build_plan(model->config(), model->weights(), options_of(exact)));
        for (const Variant& variant : variants(model->config().n_ff, exact)) {
          const Plan plan =
              build_plan(model->config(), place_weights(*model, variant.layers, variant.head), options_of(exact));
          if (!runs(plan)) continue;
          INFO(cat(family.arch, " ", dtype_name(dtype), exact ? " exact: " : " dense: "), text_of(variant));
          CHECK(logits_of(plan) == expected);
          ++n_run;
        }
      }
    }
  MESSAGE(n_run, " plans ran");
  CHECK(n_run > 0);
}

// The plan of one lane with lists that hold the detect values, as a device hands them to the host.
Plan with_values_in_lists(Plan plan) {
  for (BufferDesc& buffer : plan.buffers)
    if (buffer.kind == BufferKind::kUnits) buffer.kind = BufferKind::kActive, buffer.n_cols = 2 * buffer.n_cols - 1;
  for (Step& step : plan.steps)
    if (auto* ffn = std::get_if<op::SparseFfn>(&step.op)) {
      if (!ffn->gate) ffn->up = {}, ffn->up_bias = {};
      ffn->gate = {}, ffn->gate_bias = {}, ffn->detected = {};
    }
  return plan;
}

TEST_CASE("hybrid plan: units whose values are in their list need no detect rows") {
  for (const Family& family : kFamilies)
    for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_K}) {
      if (!is_sparse(family.activation)) continue;
      CAPTURE(family.arch);
      CAPTURE(dtype_name(dtype));
      const auto model = load_tiny(spec_of(family, dtype));
      const Plan plan = build_plan(model->config(), model->weights(), options_of(true));
      const Plan listed = with_values_in_lists(plan);
      REQUIRE(lint(listed).empty());
      CHECK(logits_of(listed) == logits_of(plan));
      for (size_t i = 0; i < plan.steps.size(); ++i) {
        if (!std::holds_alternative<op::SparseFfn>(plan.steps[i].op)) continue;
        Plan twice = listed;
        std::get<op::SparseFfn>(twice.steps[i].op).detected = std::get<op::SparseFfn>(plan.steps[i].op).detected;
        CHECK_FALSE(lint(twice).empty());
      }
    }
}

}  // namespace
