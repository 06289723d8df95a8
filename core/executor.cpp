#include "core/executor.h"

#include <exception>

namespace hotset {

Executor::Executor(std::vector<Device*> devices, std::vector<Plan> plans) : devices_(std::move(devices)) {
  buckets_.reserve(plans.size());
  for (Plan& plan : plans) {
    buckets_.push_back({std::move(plan), {}});
    for (size_t lane = 0; lane < devices_.size(); ++lane)
      buckets_.back().programs.push_back(devices_[lane]->compile(buckets_.back().plan, static_cast<int32_t>(lane)));
  }
  latest_ = &buckets_.back();
}

void Executor::run(const StepParams& params) {
  latest_ = &buckets_.back();
  for (const Bucket& bucket : buckets_) {
    if (static_cast<int64_t>(params.rows.size()) > bucket.plan.max_rows ||
        static_cast<int64_t>(params.output_rows.size()) > bucket.plan.max_output_rows)
      continue;
    latest_ = &bucket;
    break;
  }
  std::exception_ptr error;
  for (size_t lane = 0; lane < devices_.size() && !error; ++lane) {
    try {
      devices_[lane]->launch(*latest_->programs[lane], params);
    } catch (...) {
      error = std::current_exception();
    }
  }
  for (Device* device : devices_) {
    try {
      device->synchronize();
    } catch (...) {
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

const float* Executor::logits() const { return latest_->programs.back()->buffer(latest_->plan.logits); }

size_t Executor::buffer_bytes() const {
  size_t out = 0;
  for (const Bucket& bucket : buckets_)
    for (const auto& program : bucket.programs) out += program->buffer_bytes();
  return out;
}

UnitCounts Executor::unit_counts() const {
  UnitCounts out;
  for (const Bucket& bucket : buckets_)
    for (const auto& program : bucket.programs) {
      const UnitCounts counts = program->unit_counts();
      out.active += counts.active;
      out.total += counts.total;
    }
  return out;
}

}  // namespace hotset
