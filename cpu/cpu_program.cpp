#include "cpu/cpu_program.h"

#include "core/error.h"
#include "cpu/phase_builder.h"

namespace hotset::cpu {
namespace {

// How long a worker without a task spins before it sleeps. Those who have their cores end within a few microseconds;
// one that has lost its core does not, and a sleeper leaves its own to whoever can use it. With another process on one
// of two cores (Zen 5, Q4_0, 6 layers of a 1B shape) 5, 20, 50 and 500 us gave 158, 162, 155 and 137 tokens/s; on quiet
// cores all gave 300 within 2 %.
constexpr std::chrono::microseconds kSpinInStep{20};

}  // namespace

CpuProgram::CpuProgram(const Plan& plan, int32_t lane, const SharedState& shared, const Kernels& kernels,
                       ThreadPool& pool, ProgramHost host)
    : kernels_(kernels),
      pool_(pool),
      host_(std::move(host)),
      max_rows_(plan.max_rows),
      max_output_rows_(plan.max_output_rows) {
  PhaseBuilder(*this, plan, lane, shared).build();
  counters_ = std::vector<Counter>(phases_.size());
  tiles_.reserve(static_cast<size_t>(max_rows_));
}

// Rows of one sequence that follow each other, cut into tiles of at most tile_rows_.
void CpuProgram::plan_tiles(const StepParams& params) {
  tiles_.clear();
  const int32_t n = static_cast<int32_t>(params.rows.size());
  for (int32_t row = 0; row < n; ++row) {
    const bool joins = !tiles_.empty() && tiles_.back().n_rows < tile_rows_ &&
                       params.rows[static_cast<size_t>(row)].sequence ==
                           params.rows[static_cast<size_t>(tiles_.back().first_row)].sequence;
    if (joins)
      ++tiles_.back().n_rows;
    else
      tiles_.push_back({row, 1});
  }
}

void CpuProgram::run(const StepParams& params) {
  HS_CHECK(static_cast<int64_t>(params.rows.size()) <= max_rows_, "cpu_program");
  HS_CHECK(static_cast<int64_t>(params.output_rows.size()) <= max_output_rows_, "cpu_program");
  plan_tiles(params);
  for (Counter& counter : counters_) {
    counter.next.store(0, std::memory_order_relaxed);
    counter.done.store(0, std::memory_order_relaxed);
  }
  current_.store(-1, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  error_ = nullptr;
  std::function<bool(int32_t)> over;
  const StepContext context{params,
                            kernels_,
                            pool_.size(),
                            static_cast<int64_t>(params.rows.size()),
                            static_cast<int64_t>(params.output_rows.size()),
                            tiles_,
                            over};
  over = [&](int32_t worker) { return is_over(worker, context); };
  pool_.run([&](int32_t worker) { walk(worker, context); });
  if (error_) std::rethrow_exception(error_);
}

void CpuProgram::fail(std::exception_ptr error) {
  if (!failed_.exchange(true, std::memory_order_acq_rel)) error_ = std::move(error);
}

// Only the caller's thread asks: in Python the answer takes the interpreter's lock.
void CpuProgram::ask_stop(int32_t worker, const StepContext& context) {
  if (worker != 0 || !context.params.stop || failed_.load(std::memory_order_relaxed)) return;
  try {
    if (!context.params.stop()) return;
    throw CancelledError(error_text("step", "computation", "to run to its end", "a request to stop", "start it again"));
  } catch (...) {
    fail(std::current_exception());
  }
}

bool CpuProgram::is_over(int32_t worker, const StepContext& context) {
  ask_stop(worker, context);
  if (worker != 0) {
    current_.fetch_xor(kNudge, std::memory_order_release);
    current_.notify_all();
  }
  return failed_.load(std::memory_order_relaxed);
}

// After a failure tasks are taken and counted as before, but not run, so that every phase still ends.
void CpuProgram::run_task(size_t phase, int64_t task, int32_t worker, const StepContext& context) {
  if (failed_.load(std::memory_order_relaxed)) return;
  try {
    phases_[phase]->run(task, worker, context);
  } catch (...) {
    fail(std::current_exception());
  }
}

// Takes part in a phase; true for the one worker that finished it.
bool CpuProgram::share(size_t phase, int64_t n_tasks, int32_t worker, const StepContext& context) {
  Counter& counter = counters_[phase];
  int64_t n_done = 0;
  while (counter.next.load(std::memory_order_relaxed) < n_tasks) {
    const int64_t task = counter.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= n_tasks) break;
    run_task(phase, task, worker, context);
    ++n_done;
  }
  return n_done > 0 && counter.done.fetch_add(n_done, std::memory_order_acq_rel) + n_done == n_tasks;
}

void CpuProgram::prepare() {
  if (!host_.before_phase || failed_.load(std::memory_order_relaxed)) return;
  try {
    host_.before_phase();
  } catch (...) {
    fail(std::current_exception());
  }
}

// Runs the phases of one task from `phase` on, then lets the team into the next one of several.
void CpuProgram::run_alone(size_t phase, int32_t worker, const StepContext& context) {
  for (; phase < phases_.size(); ++phase) {
    prepare();
    const int64_t n = counters_[phase].n_tasks = phases_[phase]->n_tasks(context);
    if (n > 1) break;
    ask_stop(worker, context);
    if (n == 1) run_task(phase, 0, worker, context);
  }
  current_.store(static_cast<int32_t>(phase), std::memory_order_release);
  current_.notify_all();
}

void CpuProgram::walk(int32_t worker, const StepContext& context) {
  ask_stop(worker, context);
  if (worker == 0) run_alone(0, worker, context);
  for (int32_t last = -1;;) {
    const int32_t current = current_.load(std::memory_order_acquire);
    if (current == last) {
      wait_until(current_, [&] { return current_.load(std::memory_order_acquire) != last; }, kSpinInStep);
      continue;
    }
    last = current;
    const size_t phase = static_cast<size_t>(current & ~kNudge);
    if (phase == phases_.size()) return;
    ask_stop(worker, context);
    if (share(phase, counters_[phase].n_tasks, worker, context)) run_alone(phase + 1, worker, context);
  }
}

}  // namespace hotset::cpu
