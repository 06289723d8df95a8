// Devices beside the CPU that tests run on too. HOTSET_TEST_DEVICE names one for all of them: "cuda", a real card
// (tests fail where there is none), or "stand-in", the CUDA device's kernels run by the host. Without it tests of
// ops run on both, as far as there is a card, and hybrid engines on the virtual device or the stand-in.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/devices.h"
#include "core/engine.h"
#include "cuda/launches.h"
#include "tests/cpp/util.h"

namespace hotset::test {

inline std::string test_device() {
  const char* const asked = std::getenv("HOTSET_TEST_DEVICE");
  return asked != nullptr ? asked : "";
}

struct Card {
  std::string name;
  std::unique_ptr<Device> device;
};

inline std::vector<Card> cards() {
  std::vector<Card> out;
  if (test_device() != "cuda") out.push_back({"stand-in", make_cuda_stand_in({})});
  if (test_device() == "cuda" || (test_device().empty() && cuda_state().problem.empty()))
    out.push_back({"cuda", make_cuda_device({})});
  return out;
}

// Whether cards have kernels for the weights of a plan.
inline bool have_kernels(const Plan& plan) {
  return std::all_of(plan.weights.begin(), plan.weights.end(),
                     [](const WeightDesc& weight) { return cuda::has_kernels(weight.view.dtype); });
}

// Lets a hybrid engine use the device that is asked for; without one, the stand-in for every eighth `number`. Weights
// that cards have no kernels for are left to the virtual device.
inline void choose_card(EngineOptions& options, VirtualDeviceOptions& card, uint64_t number, DType dtype) {
  if (!cuda::has_kernels(dtype)) return;
  card.runs_cuda_kernels = test_device() == "stand-in" || (test_device().empty() && number % 8 == 0);
  if (test_device() == "cuda") options.device = "cuda";
}

// The plan's logits after one step of its host lane's ops on a card: weights are brought to it, results fetched.
inline std::vector<float> run_on_card(Device& card, Plan plan, const StepParams& params) {
  std::deque<std::unique_ptr<DeviceMemory>> memory;
  for (WeightDesc& weight : plan.weights) {
    memory.push_back(card.alloc(weight.view.size_bytes()));
    card.upload(memory.back()->data(), weight.view.data, weight.view.size_bytes());
    weight.view.data = memory.back()->data();
  }
  const auto program = card.compile(plan, kHostLane);
  card.launch(*program, params);
  card.synchronize();
  std::vector<float> out(params.output_rows.size() * static_cast<size_t>(plan.n_vocab));
  if (out.empty()) return out;
  card.download(reinterpret_cast<const std::byte*>(program->buffer(plan.logits)),
                reinterpret_cast<std::byte*>(out.data()), out.size() * sizeof(float));
  return out;
}

}  // namespace hotset::test
