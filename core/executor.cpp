#include "core/executor.h"

#include <algorithm>
#include <exception>

#include "core/error.h"

namespace hotset {

Executor::Executor(std::vector<Device*> devices, Plan plan, std::chrono::milliseconds patience)
    : devices_(std::move(devices)), plan_(std::move(plan)) {
  HS_CHECK(static_cast<int32_t>(devices_.size()) >= plan_.n_lanes(), "executor");
  share(patience);
  for (size_t lane = 0; lane < devices_.size(); ++lane)
    programs_.push_back(devices_[lane]->compile(plan_, static_cast<int32_t>(lane), shared_));
}

// Memory that all lanes access comes from the last device, which may have to register it.
void Executor::share(std::chrono::milliseconds patience) {
  shared_.buffers.resize(plan_.buffers.size());
  for (size_t i = 0; i < plan_.buffers.size(); ++i) {
    if (plan_.buffers[i].lane != kSharedLane) continue;
    const BufferId id{static_cast<int32_t>(i)};
    const int64_t n_words = plan_.max_rows_of(id) * plan_.row_words(id);
    shared_memory_.push_back(devices_.back()->alloc_shared(static_cast<size_t>(n_words) * sizeof(float)));
    shared_.buffers[i] = shared_memory_.back()->data();
  }
  if (plan_.flags.empty()) return;
  shared_memory_.push_back(devices_.back()->alloc_shared(plan_.flags.size() * Handoff::kFlagBytes));
  handoff_ = std::make_unique<Handoff>(shared_memory_.back()->data(), static_cast<int32_t>(plan_.flags.size()), patience);
  shared_.handoff = handoff_.get();
}

void Executor::run(const StepParams& params) {
  if (handoff_ && handoff_->lost_patience())
    throw DeviceError(error_text("executor", "device", "one that answers", "one that did not in an earlier step",
                                 "start again, or use --device cpu"));
  if (handoff_) handoff_->begin_step();
  std::exception_ptr error;
  const auto attempt = [&](const auto& work) {
    try {
      work();
    } catch (...) {
      if (!error) error = std::current_exception();
      if (handoff_) handoff_->abort(std::current_exception());
    }
  };
  for (size_t lane = devices_.size(); lane-- > 0 && !error;)
    attempt([&] { devices_[lane]->launch(*programs_[lane], params); });
  for (Device* device : devices_) {
    if (handoff_ && !handoff_->lost_patience() && !device->finishes_within(handoff_->patience()))
      handoff_->lose_patience();
    if (!handoff_ || !handoff_->lost_patience()) attempt([&] { device->synchronize(); });
  }
  if (handoff_ && handoff_->aborted()) error = handoff_->error();
  if (error) std::rethrow_exception(error);
}

const float* Executor::logits() const { return programs_[kHostLane]->buffer(plan_.logits); }

size_t Executor::buffer_bytes(int32_t lane) const { return programs_[static_cast<size_t>(lane)]->buffer_bytes(); }

size_t Executor::buffer_bytes() const {
  size_t out = 0;
  for (const auto& program : programs_) out += program->buffer_bytes();
  return out;
}

size_t Executor::shared_bytes() const {
  size_t out = 0;
  for (const auto& memory : shared_memory_) out += memory->size();
  return out;
}

Traffic Executor::traffic() const {
  Traffic out;
  for (size_t lane = kDeviceLane; lane < programs_.size(); ++lane) out += programs_[lane]->traffic();
  return out;
}

void Executor::add_tallies(int64_t first, std::span<uint32_t> counts) const {
  for (const auto& program : programs_) program->add_tallies(first, counts);
}

UnitCounts Executor::unit_counts() const {
  UnitCounts out;
  for (const auto& program : programs_) out += program->unit_counts();
  return out;
}

}  // namespace hotset
