// What a hand-off costs the host: steps that do nothing but signal and wait, between the CPU and the virtual device.
//
//   bench_handoff [layers] [steps]     a core for each of the two lanes; median and 90 % of a layer's fork and join
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/devices.h"
#include "core/executor.h"

namespace {

using namespace hotset;

// A fork and a join a layer, and one value, because a plan has logits.
Plan empty_layers(int64_t n_layers) {
  Plan plan;
  plan.max_rows = plan.max_output_rows = 1;
  plan.n_vocab = 1;
  plan.buffers.push_back({"logits", 1, BufferRows::kOutput, BufferKind::kFloats, kHostLane});
  plan.logits = {0};
  for (int64_t i = 0; i < n_layers; ++i) {
    const FlagId fork{static_cast<int32_t>(plan.flags.size())}, join{fork.index + 1};
    plan.flags.push_back("fork"), plan.flags.push_back("join");
    plan.steps.push_back({kDeviceLane, op::Signal{fork}});
    plan.steps.push_back({kHostLane, op::Wait{fork}});
    plan.steps.push_back({kHostLane, op::Signal{join}});
    plan.steps.push_back({kDeviceLane, op::Wait{join}});
  }
  return plan;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n_layers = argc > 1 ? std::max(1L, std::atol(argv[1])) : 80;
  const int64_t n_steps = argc > 2 ? std::max(1L, std::atol(argv[2])) : 2000;
  const auto host = make_cpu_device({.n_threads = 1});
  const auto card = make_virtual_device({});
  Executor executor({host.get(), card.get()}, empty_layers(n_layers));
  const StepParams params;
  std::vector<double> us;
  for (int64_t i = 0; i < n_steps + 100; ++i) {
    const auto start = std::chrono::steady_clock::now();
    executor.run(params);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    if (i >= 100) us.push_back(took.count() / static_cast<double>(n_layers));  // the step's start is shared by its layers
  }
  std::sort(us.begin(), us.end());
  std::printf("%ld layers, %ld steps: a fork and a join %.2f us median, %.2f us at 90 %%\n", static_cast<long>(n_layers),
              static_cast<long>(n_steps), us[us.size() / 2], us[us.size() * 9 / 10]);
  return 0;
}
