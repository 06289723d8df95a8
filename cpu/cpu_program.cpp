#include "cpu/cpu_program.h"

#include "core/error.h"
#include "cpu/phase_builder.h"

namespace hotset::cpu {

CpuProgram::CpuProgram(const Plan& plan, int32_t lane, const Kernels& kernels, ThreadPool& pool)
    : kernels_(kernels), pool_(pool), max_rows_(plan.max_rows), max_output_rows_(plan.max_output_rows) {
  PhaseBuilder(*this, plan, lane).build();
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
  for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  error_ = nullptr;
  const StepContext context{params,
                            kernels_,
                            pool_.size(),
                            static_cast<int64_t>(params.rows.size()),
                            static_cast<int64_t>(params.output_rows.size()),
                            tiles_};
  pool_.run([&](int32_t worker) { walk(worker, context); });
  if (error_) std::rethrow_exception(error_);
}

// Every worker passes the same barriers whatever happens: after a failure the remaining tasks are skipped.
void CpuProgram::walk(int32_t worker, const StepContext& context) {
  int64_t n_next = phases_.empty() ? 0 : phases_[0]->n_tasks(context);
  for (size_t i = 0; i < phases_.size(); ++i) {
    const int64_t n = n_next;
    n_next = i + 1 < phases_.size() ? phases_[i + 1]->n_tasks(context) : 0;
    try {
      if (worker == 0 && context.params.stop && !failed_.load(std::memory_order_relaxed) && context.params.stop())
        throw CancelledError(
            error_text("step", "computation", "to run to its end", "a request to stop", "start it again"));
      if (n == 1) {
        if (worker == 0 && !failed_.load(std::memory_order_relaxed)) phases_[i]->run(0, 0, context);
      } else {
        while (!failed_.load(std::memory_order_relaxed)) {
          const int64_t task = counters_[i].next.fetch_add(1, std::memory_order_relaxed);
          if (task >= n) break;
          phases_[i]->run(task, worker, context);
        }
      }
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_acq_rel)) error_ = std::current_exception();
    }
    if (n > 1 || n_next > 1) pool_.barrier();
  }
}

}  // namespace hotset::cpu
