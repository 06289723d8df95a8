// Small plans of two lanes written by hand, and the same without hand-offs.
#pragma once

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/devices.h"
#include "core/error.h"
#include "core/executor.h"
#include "tests/cpp/util.h"

namespace hotset::test {

// Layers that add to x the product of a weight on the device and that of one on the host, as an FFN's halves are added.
class ToyLanes {
 public:
  static constexpr int64_t kMaxRows = 8, kColumns = 48;

  explicit ToyLanes(int64_t n_layers, uint64_t seed = 1) : n_layers_(n_layers), random_(seed) {
    for (int64_t i = 0; i <= 2 * n_layers; ++i)
      weights_.push_back(random_matrix(random_, DType::kF32, kColumns, i == 0 ? kMaxRows : kColumns));
  }

  int64_t n_layers() const { return n_layers_; }
  static size_t weight_bytes() { return static_cast<size_t>(kColumns * kColumns) * sizeof(float); }

  // All on the host.
  Plan one_lane() const {
    Plan plan = empty();
    const BufferId x = buffer(plan, "x", kHostLane), hot = buffer(plan, "hot", kHostLane);
    const BufferId cold = buffer(plan, "cold", kHostLane);
    logits(plan, kHostLane);
    const auto step = [&](const Op& op) { plan.steps.push_back({kHostLane, op}); };
    step(op::Embed{weight(plan, 0), x});
    for (int64_t i = 0; i < n_layers_; ++i) {
      step(op::MatMul{weight(plan, 2 * i + 1), {}, x, hot});
      step(op::MatMul{weight(plan, 2 * i + 2), {}, x, cold});
      step(op::Add{hot, cold, hot});
      step(op::Add{x, hot, x});
    }
    step(op::SelectRows{x, plan.logits});
    return plan;
  }

  // The first weight of each layer in the card's memory, which this keeps.
  Plan two_lanes(Device& card) {
    Plan plan = empty();
    const BufferId x = buffer(plan, "x", kDeviceLane), hot = buffer(plan, "hot", kDeviceLane);
    const BufferId back = buffer(plan, "back", kDeviceLane);
    const BufferId out = buffer(plan, "out", kDeviceLane, BufferRows::kOutput);
    const BufferId first = buffer(plan, "shared_first", kSharedLane), shared_x = buffer(plan, "shared_x", kSharedLane);
    const BufferId cold = buffer(plan, "shared_cold", kSharedLane);
    logits(plan, kSharedLane);
    const auto host = [&](const Op& op) { plan.steps.push_back({kHostLane, op}); };
    const auto device = [&](const Op& op) { plan.steps.push_back({kDeviceLane, op}); };
    host(op::Embed{weight(plan, 0), first});
    hand_over(plan, "begin", kHostLane);
    device(op::Copy{first, x});
    for (int64_t i = 0; i < n_layers_; ++i) {
      device(op::Copy{x, shared_x});
      hand_over(plan, "fork", kDeviceLane);
      device(op::MatMul{weight(plan, 2 * i + 1, &card), {}, x, hot});
      host(op::MatMul{weight(plan, 2 * i + 2), {}, shared_x, cold});
      hand_over(plan, "join", kHostLane);
      device(op::Copy{cold, back});
      device(op::Add{hot, back, hot});
      device(op::Add{x, hot, x});
    }
    device(op::SelectRows{x, out});
    device(op::Copy{out, plan.logits});
    hand_over(plan, "end", kDeviceLane);
    return plan;
  }

 private:
  static Plan empty() {
    Plan plan;
    plan.max_rows = plan.max_output_rows = kMaxRows;
    plan.max_positions = 64;
    return plan;
  }
  static BufferId buffer(Plan& plan, const std::string& name, int32_t lane, BufferRows rows = BufferRows::kAll) {
    plan.buffers.push_back({name, kColumns, rows, BufferKind::kFloats, lane});
    return {static_cast<int32_t>(plan.buffers.size()) - 1};
  }
  static void logits(Plan& plan, int32_t lane) {
    plan.n_vocab = kColumns;
    plan.logits = buffer(plan, "logits", lane, BufferRows::kOutput);
  }
  static void hand_over(Plan& plan, const std::string& name, int32_t from) {
    const FlagId flag{static_cast<int32_t>(plan.flags.size())};
    plan.flags.push_back(name);
    plan.steps.push_back({from, op::Signal{flag}});
    plan.steps.push_back({from == kHostLane ? kDeviceLane : kHostLane, op::Wait{flag}});
  }
  WeightId weight(Plan& plan, int64_t index) const {
    const std::string& bytes = weights_[static_cast<size_t>(index)];
    const int64_t n_rows = static_cast<int64_t>(bytes.size() / sizeof(float)) / kColumns;
    plan.weights.push_back({"w", {reinterpret_cast<const std::byte*>(bytes.data()), DType::kF32, kColumns, n_rows,
                                  row_bytes(DType::kF32, kColumns)}});
    return {static_cast<int32_t>(plan.weights.size()) - 1};
  }
  WeightId weight(Plan& plan, int64_t index, Device* card) {
    const WeightId out = weight(plan, index);
    WeightDesc& made = plan.weights.back();
    memory_.push_back(card->alloc(made.view.size_bytes()));
    card->upload(memory_.back()->data(), made.view.data, made.view.size_bytes());
    made.view.data = memory_.back()->data(), made.lane = kDeviceLane;
    return out;
  }

  int64_t n_layers_;
  std::mt19937_64 random_;
  std::deque<std::string> weights_;  // the embedding, then two a layer
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
};

// A step of tokens 0, 1, .. that asks for the logits of all.
inline StepParams toy_step(int64_t n_rows) {
  StepParams params;
  params.sequences.emplace_back();
  for (int32_t row = 0; row < n_rows; ++row) {
    params.rows.push_back({row, row, 0});
    params.output_rows.push_back(row);
  }
  return params;
}

// A toy on the host and a pretend card. The members are destroyed in the order that devices ask for.
struct ToyRun {
  ToyRun(int64_t n_layers, int32_t n_threads, const VirtualDeviceOptions& options = {},
         std::chrono::milliseconds patience = std::chrono::seconds(60))
      : host(make_cpu_device({.n_threads = n_threads})), card(make_virtual_device(options)), toy(n_layers) {
    executor = std::make_unique<Executor>(std::vector<Device*>{host.get(), card.get()}, toy.two_lanes(*card), patience);
  }
  // The logits of a step of n_rows tokens.
  std::vector<float> run(int64_t n_rows, std::function<bool()> stop = {}) {
    StepParams params = toy_step(n_rows);
    params.stop = std::move(stop);
    executor->run(params);
    return {executor->logits(), executor->logits() + n_rows * ToyLanes::kColumns};
  }
  // What run() must give, by the host alone.
  std::vector<float> expected(int64_t n_rows) const {
    const auto alone = make_cpu_device({.n_threads = 1});
    Executor one({alone.get()}, toy.one_lane());
    one.run(toy_step(n_rows));
    return {one.logits(), one.logits() + n_rows * ToyLanes::kColumns};
  }

  std::unique_ptr<Device> host, card;
  ToyLanes toy;
  std::unique_ptr<Executor> executor;
};

}  // namespace hotset::test
