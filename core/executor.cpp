#include "core/executor.h"

#include <exception>

namespace hotset {

Executor::Executor(std::vector<Device*> devices, Plan plan) : devices_(std::move(devices)), plan_(std::move(plan)) {
  for (size_t lane = 0; lane < devices_.size(); ++lane)
    programs_.push_back(devices_[lane]->compile(plan_, static_cast<int32_t>(lane)));
}

void Executor::run(const StepParams& params) {
  std::exception_ptr error;
  for (size_t lane = 0; lane < devices_.size() && !error; ++lane) {
    try {
      devices_[lane]->launch(*programs_[lane], params);
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

const float* Executor::logits() const { return programs_.back()->buffer(plan_.logits); }

size_t Executor::buffer_bytes() const {
  size_t out = 0;
  for (const auto& program : programs_) out += program->buffer_bytes();
  return out;
}

UnitCounts Executor::unit_counts() const {
  UnitCounts out;
  for (const auto& program : programs_) {
    const UnitCounts counts = program->unit_counts();
    out.active += counts.active;
    out.computed += counts.computed;
    out.total += counts.total;
    out.candidates += counts.candidates;
  }
  return out;
}

}  // namespace hotset
