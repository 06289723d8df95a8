// Runs the steps of a plan: launches the program of every lane and joins them.
#pragma once

#include <memory>
#include <vector>

#include "core/device.h"
#include "core/plan.h"

namespace hotset {

class Executor {
 public:
  // devices[i] serves lane i. The devices and the plan's weights must outlive the executor.
  Executor(std::vector<Device*> devices, Plan plan);

  // Computes one step. Rethrows the first error of any lane after all have stopped.
  void run(const StepParams& params);

  // Logits of the latest step's output rows: (n_output_rows, n_vocab).
  const float* logits() const;

  const Plan& plan() const { return plan_; }
  size_t buffer_bytes() const;
  UnitCounts unit_counts() const;  // of all lanes

 private:
  std::vector<Device*> devices_;
  Plan plan_;
  std::vector<std::unique_ptr<Program>> programs_;  // one per lane
};

}  // namespace hotset
