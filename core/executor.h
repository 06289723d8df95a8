// Runs steps: picks the plan for the number of rows, launches its program on every lane and joins them.
#pragma once

#include <memory>
#include <vector>

#include "core/device.h"
#include "core/plan.h"

namespace hotset {

class Executor {
 public:
  // devices[i] serves lane i. Plans of one model in ascending order of max_rows; they give the same results and share
  // KV memory. The devices and the plans' weights must outlive the executor.
  Executor(std::vector<Device*> devices, std::vector<Plan> plans);

  // Computes one step with the first plan that has room for it. Rethrows the first error of any lane after all have
  // stopped.
  void run(const StepParams& params);

  // Logits of the latest step's output rows: (n_output_rows, n_vocab).
  const float* logits() const;

  // The plan for most rows.
  const Plan& plan() const { return buckets_.back().plan; }
  size_t buffer_bytes() const;
  UnitCounts unit_counts() const;  // of all programs

 private:
  struct Bucket {
    Plan plan;
    std::vector<std::unique_ptr<Program>> programs;  // one per lane
  };
  std::vector<Device*> devices_;
  std::vector<Bucket> buckets_;
  const Bucket* latest_ = nullptr;  // whose logits are the latest step's
};

}  // namespace hotset
