// What plans of several lanes need beside PlanBuilder: buffers by name, and what crosses between lanes.
#pragma once

#include <algorithm>
#include <string>

#include "core/plan_builder.h"

namespace hotset {

class LaneBuilder : protected PlanBuilder {
 protected:
  using PlanBuilder::PlanBuilder;

  static int32_t other(int32_t lane) { return lane == kHostLane ? kDeviceLane : kHostLane; }

  // The buffer of this name; as wide as the layer needs that needs most.
  BufferId named(const BufferDesc& desc) {
    const auto found = std::find_if(plan_.buffers.begin(), plan_.buffers.end(),
                                    [&](const BufferDesc& each) { return each.name == desc.name; });
    if (found == plan_.buffers.end()) {
      plan_.buffers.push_back(desc);
      return {static_cast<int32_t>(plan_.buffers.size()) - 1};
    }
    found->n_cols = std::max(found->n_cols, desc.n_cols);
    return {static_cast<int32_t>(found - plan_.buffers.begin())};
  }
  BufferId shared(const std::string& name, int64_t n_cols, BufferKind kind = BufferKind::kFloats) {
    return named({"shared_" + name, n_cols, BufferRows::kAll, kind, kSharedLane});
  }
  BufferId own(const std::string& name, int64_t n_cols, BufferKind kind = BufferKind::kFloats) {
    return named({(lane_ == kHostLane ? "host_" : "") + name, n_cols, BufferRows::kAll, kind, lane_});
  }

  FlagId signal(const std::string& name) {
    plan_.flags.push_back(name);
    const FlagId flag{static_cast<int32_t>(plan_.flags.size()) - 1};
    add(op::Signal{flag});
    return flag;
  }
  // Goes on with the other lane, once the flag is up.
  void wait(int32_t lane, FlagId flag) {
    on(lane);
    add(op::Wait{flag});
  }
  // Takes a value from the current lane to the other one. The host's is the shared buffer itself.
  void hand_over(BufferId device, BufferId shared, const std::string& name) {
    const int32_t from = lane_;
    if (from == kDeviceLane) add(op::Copy{device, shared});
    wait(other(from), signal(name));
    if (from == kHostLane) add(op::Copy{shared, device});
  }

  // The residual, and a layer's normed input, as a lane has them.
  BufferId x_of(int32_t lane) { return lane == kHostLane ? shared("x", config_.n_embd) : of_device("x"); }
  BufferId x_norm_of(int32_t lane) {
    return lane == kHostLane ? shared("x_norm", config_.n_embd) : of_device("x_norm");
  }
  BufferId of_device(const std::string& name) {
    return named({name, config_.n_embd, BufferRows::kAll, BufferKind::kFloats, kDeviceLane});
  }
};

}  // namespace hotset
