// Runs the steps of a plan: launches the program of every lane and joins them.
//
// The device's lane is launched first and runs by itself; the host's lane then runs on the calling thread and its team.
// They meet at the plan's flags (core/handoff.h). When one fails, the other's waits end, so that a step always ends.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "core/device.h"
#include "core/plan.h"

namespace hotset {

class Executor {
 public:
  // devices[i] serves lane i; that of kHostLane computes within launch(). The devices and the plan's weights must
  // outlive the executor. `patience`: how long the host waits for a device that says nothing.
  Executor(std::vector<Device*> devices, Plan plan, std::chrono::milliseconds patience = std::chrono::seconds(60));

  // Computes one step. Rethrows the first error of any lane after all have stopped; a device that has said nothing for
  // as long as patience lasts is not waited for, then and in later steps, which fail at once.
  void run(const StepParams& params);

  // Logits of the latest step's output rows: (n_output_rows, n_vocab).
  const float* logits() const;

  const Plan& plan() const { return plan_; }
  size_t buffer_bytes() const;  // activations and scratch of all lanes
  size_t buffer_bytes(int32_t lane) const;
  size_t shared_bytes() const;  // of host memory that hand-offs go through
  UnitCounts unit_counts() const;  // of all lanes
  void add_tallies(int64_t first, std::span<uint32_t> counts) const;  // of all lanes; not during a step
  Traffic traffic() const;         // of the device's lanes

 private:
  void share(std::chrono::milliseconds patience);

  std::vector<Device*> devices_;
  Plan plan_;
  std::vector<std::unique_ptr<DeviceMemory>> shared_memory_;
  std::unique_ptr<Handoff> handoff_;
  SharedState shared_;
  std::vector<std::unique_ptr<Program>> programs_;  // one per lane
};

}  // namespace hotset
