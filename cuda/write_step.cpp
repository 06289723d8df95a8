// What changes from step to step, as kernels find it (StepHead in cuda/kernel_base.h).
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "cuda/launches.h"

namespace hotset::cuda {
namespace {

// Addresses of the KV blocks that the rows of a step see, each sequence's once; first[row] is where its begin.
std::vector<int32_t> write_blocks(int32_t lane, const StepParams& params,
                                  const std::function<std::byte*(const std::byte*)>& real, std::byte** to, int32_t& n) {
  std::vector<int32_t> first(params.rows.size());
  std::vector<int64_t> first_of(params.sequences.size(), -1), n_needed(params.sequences.size());
  for (const Row& row : params.rows) {
    int64_t& needed = n_needed.at(static_cast<size_t>(row.sequence));
    needed = std::max<int64_t>(needed, row.position / KvLayout::kBlockPositions + 1);
  }
  for (size_t i = 0; i < first.size(); ++i) {
    const size_t sequence = static_cast<size_t>(params.rows[i].sequence);
    if (first_of[sequence] < 0) {
      first_of[sequence] = n;
      const std::vector<std::byte*>& blocks = *params.sequences[sequence].blocks[static_cast<size_t>(lane)];
      for (int64_t b = 0; b < n_needed[sequence]; ++b) to[n++] = real(blocks.at(static_cast<size_t>(b)));
    }
    first[i] = static_cast<int32_t>(first_of[sequence]);
  }
  return first;
}

// Of each row the cosines, then the sines.
void write_angles(const std::vector<double>& frequencies, double magnitude, const StepParams& params, float* to) {
  const size_t half = frequencies.size();
  for (const Row& row : params.rows) {
    const double position = row.position;
    for (size_t i = 0; i < half; ++i) {
      to[i] = static_cast<float>(magnitude * std::cos(position * frequencies[i]));
      to[half + i] = static_cast<float>(magnitude * std::sin(position * frequencies[i]));
    }
    to += 2 * half;
  }
}

}  // namespace

void write_step(const LaunchList& list, const Plan& plan, int32_t lane, const StepParams& params, uint32_t number,
                const std::function<std::byte*(const std::byte*)>& real) {
  const auto n_rows = static_cast<int32_t>(params.rows.size());
  HS_CHECK(n_rows <= plan.max_rows, "cuda step");
  HS_CHECK(static_cast<int64_t>(params.output_rows.size()) <= plan.max_output_rows, "cuda step");
  StepHead& head = *list.step();
  int32_t* const words = reinterpret_cast<int32_t*>(&head);
  head = {};
  head.n_rows = n_rows, head.n_output_rows = static_cast<int32_t>(params.output_rows.size()), head.number = number;
  head.blocks = kHeadWords;
  int32_t n_blocks = 0;
  std::vector<int32_t> first(params.rows.size());
  if (list.has_kv)
    first = write_blocks(lane, params, real, reinterpret_cast<std::byte**>(words + head.blocks), n_blocks);
  head.rows = head.blocks + 2 * n_blocks;
  for (int32_t i = 0; i < n_rows; ++i) {
    const Row& row = params.rows[static_cast<size_t>(i)];
    int32_t* const at = words + head.rows + 3 * i;
    at[0] = row.token, at[1] = row.position, at[2] = first[static_cast<size_t>(i)];
  }
  head.outputs = head.rows + 3 * n_rows;
  std::copy(params.output_rows.begin(), params.output_rows.end(), words + head.outputs);
  head.angles = head.outputs + head.n_output_rows;
  head.n_words = head.angles;
  if (!list.has_angles) return;
  for (const std::vector<double>* frequencies : {&plan.rope_freqs, &plan.rope_freqs_local}) {
    write_angles(*frequencies, static_cast<double>(plan.rope_magnitude), params,
                 reinterpret_cast<float*>(words + head.n_words));
    head.n_words += 2 * static_cast<int32_t>(frequencies->size()) * n_rows;
  }
}

}  // namespace hotset::cuda
