// The units of a row sum in passes, with the rows of the next pass on their way. Private to cpu/sum_*.cpp.
#pragma once

#include "cpu/sum_plain.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kPassUnits = 128;

// Bytes of row_multiple(type) elements.
constexpr int64_t sum_block_bytes(WeightType type) {
  using namespace block_format;
  constexpr int64_t kBytes[kNWeightTypes] = {4,
                                             2,
                                             2,
                                             Q8::kBytes,
                                             Q4::kBytes,
                                             Q4K::kBytes,
                                             Q5K::kBytes,
                                             Q6K::kBytes,
                                             Q2_K::kBytes,
                                             Q3_K::kBytes,
                                             IQ4_XS::kBytes,
                                             Q4_1::kBytes,
                                             Q5_0::kBytes,
                                             Q5_1::kBytes,
                                             IQ4_NL::kBytes,
                                             MXFP4::kBytes};
  return kBytes[type];
}

// Rows that go past the sums together, and what activation a weighs row u with: h[a * h_stride + u].
struct SumPass {
  const std::byte* rows[kPassUnits];
  int64_t n_units = 0;
  const float* h;
  float kept[kPassUnits];  // what h points to where rows were left out
};

// Cuts the units of a call into passes. The first are small, because nothing has been prefetched for them; with one
// activation all are, since what is prefetched has to wait in the cache.
class SumPasses {
 public:
  explicit SumPasses(const RowSumArgs& args) : args_(args), most_ever_(args.n_acts == 1 ? 32 : kPassUnits) {}

  // False when none is left. One activation: rows that weigh nothing are left out.
  bool next(SumPass& pass) {
    pass.n_units = 0;
    pass.h = args_.h + at_;
    if (args_.n_acts == 1) pass.h = pass.kept;
    for (; at_ < args_.n_units && pass.n_units < most_; ++at_) {
      if (args_.n_acts == 1 && args_.h[at_] == 0.0f) continue;
      pass.kept[pass.n_units] = args_.h[at_];
      pass.rows[pass.n_units++] = unit_row(args_, at_);
    }
    if (most_ < most_ever_) most_ *= 2;
    return pass.n_units > 0;
  }

 private:
  const RowSumArgs& args_;
  int64_t at_ = 0;
  int64_t most_ = 16;
  const int64_t most_ever_;
};

// Asks for what the next pass reads, row after row, in `n_calls` parts of equal size: bursts would be dropped.
template <WeightType type>
class Ahead {
 public:
  Ahead(const RowSumArgs& args, const SumPass& next, int64_t n_calls)
      : next_(next), from_(offset(args.first_col)), to_(offset(args.first_col + args.n_cols)), at_(from_) {
    const int64_t n_lines = next.n_units * ((to_ - from_ + 63) / 64);
    each_ = (n_lines + n_calls - 1) / n_calls;
  }

  [[gnu::always_inline]] void go_on() {
    for (int64_t i = 0; i < each_ && unit_ < next_.n_units; ++i) {
      __builtin_prefetch(next_.rows[unit_] + at_, 0, 2);
      at_ += 64;
      if (at_ >= to_) at_ = from_, ++unit_;
    }
  }

 private:
  static constexpr int64_t kBytes = sum_block_bytes(type);
  static int64_t offset(int64_t column) { return column * kBytes / row_multiple(type); }
  const SumPass& next_;
  const int64_t from_, to_;
  int64_t each_, unit_ = 0, at_;
};

// sum(pass, next) for every pass; `next` is empty after the last.
template <class F>
inline void for_passes(const RowSumArgs& args, F sum) {
  SumPasses passes(args);
  SumPass pass[2];
  bool more = args.n_cols > 0 && passes.next(pass[0]);
  for (int at = 0; more; at ^= 1) {
    more = passes.next(pass[at ^ 1]);
    sum(pass[at], pass[at ^ 1]);
  }
}

}  // namespace
}  // namespace hotset::cpu
