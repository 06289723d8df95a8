// Plans handed to their lanes step by step, as to devices whose queues hold few steps: why the list has its order.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <deque>
#include <random>
#include <variant>

#include "core/hybrid_planner.h"
#include "tests/cpp/families.h"
#include "tests/cpp/placed_plans.h"

namespace {

using namespace hotset;
using namespace hotset::test;

// One feeder hands steps over in the list's order and waits while a lane's queue is full; feeder and lanes take turns
// at random. Whether all steps run in the end.
bool all_run(const Plan& plan, size_t depth, std::mt19937_64& random) {
  std::array<std::deque<const Op*>, kMaxLanes> queues;
  std::vector<bool> is_signalled(plan.flags.size());
  const auto queue_of = [&](const Step& step) -> auto& { return queues[static_cast<size_t>(step.lane)]; };
  const auto waits = [&](const Op& op) {
    const auto* const wait = std::get_if<op::Wait>(&op);
    return wait && !is_signalled[static_cast<size_t>(wait->flag.index)];
  };
  constexpr size_t kFeeder = kMaxLanes;
  for (size_t n_fed = 0, n_run = 0; n_run < plan.steps.size();) {
    std::vector<size_t> able;
    if (n_fed < plan.steps.size() && queue_of(plan.steps[n_fed]).size() < depth) able.push_back(kFeeder);
    for (size_t lane = 0; lane < queues.size(); ++lane)
      if (!queues[lane].empty() && !waits(*queues[lane].front())) able.push_back(lane);
    if (able.empty()) return false;
    const size_t who = able[random() % able.size()];
    if (who == kFeeder) {
      queue_of(plan.steps[n_fed]).push_back(&plan.steps[n_fed].op);
      ++n_fed;
      continue;
    }
    if (const auto* const signal = std::get_if<op::Signal>(queues[who].front()))
      is_signalled[static_cast<size_t>(signal->flag.index)] = true;
    queues[who].pop_front();
    ++n_run;
  }
  return true;
}

TEST_CASE("step queues: the list of every plan can be fed through queues of any depth, lane after lane it cannot") {
  std::mt19937_64 random(11);
  int64_t n_stuck = 0;
  for (const bool exact : {true, false}) {
    const auto model = load_tiny({.n_layer = 3});
    for (const Variant& variant : variants(model->config().n_ff, exact)) {
      INFO(text_of(variant));
      Plan plan = build_plan(model->config(), place_weights(*model, variant.layers, variant.head), options_of(exact));
      for (const size_t depth : {1, 2, 3, 16}) CHECK(all_run(plan, depth, random));
      // The same program of each lane, the device's handed over first, as Executor does: it has to hold all of it.
      const auto is_device = [](const Step& step) { return step.lane == kDeviceLane; };
      std::stable_partition(plan.steps.begin(), plan.steps.end(), is_device);
      CHECK(all_run(plan, plan.steps.size(), random));
      n_stuck += !all_run(plan, 4, random);
    }
  }
  CHECK(n_stuck > 20);
}

}  // namespace
