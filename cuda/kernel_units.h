// Kernels of units: which are active, their h, and the exact sums of their down rows.
#pragma once

#include "cuda/kernel_base.h"

namespace hotset::cuda {

// Unit lists in ascending order, by one block a row. A round looks at kSelectTile places: flags first, coalesced; then
// every thread counts its 32 flags, 16 threads add up the counts of 16 each, and every thread writes its units behind
// those before it. No atomics, so that the order is that of the slots.
struct SelectUnitRows {
  static constexpr int kThreads = 256, kPasses = 5, kEach = 32, kSelectTile = kThreads * kEach;
  struct Shared {
    uint8_t flag[kSelectTile];
    int32_t count[kThreads];
    int32_t group[kThreads / 16];  // of 16 counts
    int32_t base[2];       // units before this round, and before the next
    int32_t begin, n_all;  // places to look at: of the candidates, or of the columns
  };
  StepView step;
  Rows in, among, out;  // among without data: all columns
  int64_t first_unit = 0, n_units = 0;
  uint32_t* tally = nullptr;  // null: not counted
  Counters* counters = nullptr;
  bool is_active = false, is_cold = false, is_handed_over = false;

  HS_DEVICE int64_t n_items() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_rounds(int64_t row) const {
    const int64_t most = among.data != nullptr ? list_of(among, row).n : n_units;
    return most == 0 ? 1 : div_up(most, kSelectTile);
  }
  HS_DEVICE int64_t unit_at(int64_t row, int64_t place, const Shared& s) const {
    return among.data != nullptr ? list_of(among, row).units[s.begin + place] - first_unit : place;
  }

  HS_DEVICE void pass(int p, int64_t row, int64_t round, int thread, Shared& s) const {
    const float* const values = in.row(row) + first_unit;
    const int64_t first = round * kSelectTile;
    if (p == 0) {
      find_range(row, round, thread, s);
    } else if (p == 1) {
      for (int i = thread; i < flags_of(round, s); i += kThreads) {
        const int64_t place = first + i;
        s.flag[i] = place < s.n_all && !(values[unit_at(row, place, s)] <= 0.0f);
      }
    } else if (p == 2) {
      int32_t n = 0;
      if (thread * kEach < flags_of(round, s))
        for (int i = 0; i < kEach; ++i) n += s.flag[thread * kEach + i];
      s.count[thread] = n;
    } else if (p == 3) {
      if (thread >= kThreads / 16) return;
      int32_t n = 0;
      for (int i = 0; i < 16; ++i) n += s.count[thread * 16 + i];
      s.group[thread] = n;
    } else {
      write(row, round, thread, s);
    }
  }

 private:
  // Flags of a round that are looked at: whole threads' shares.
  HS_DEVICE static int64_t flags_of(int64_t round, const Shared& s) {
    return least(kSelectTile, div_up(s.n_all - round * kSelectTile, kEach) * kEach);
  }

  HS_DEVICE void find_range(int64_t row, int64_t round, int thread, Shared& s) const {
    if (round != 0 || thread != 0) return;
    s.base[0] = 0;
    s.begin = 0, s.n_all = static_cast<int32_t>(n_units);
    if (among.data == nullptr) return;
    const List list = list_of(among, row);
    s.begin = static_cast<int32_t>(list.position(first_unit));
    s.n_all = static_cast<int32_t>(list.position(first_unit + n_units)) - s.begin;
  }

  HS_DEVICE void write(int64_t row, int64_t round, int thread, Shared& s) const {
    const float* const values = in.row(row) + first_unit;
    float* const to = out.row(row);
    int32_t* const list = reinterpret_cast<int32_t*>(to) + 1;
    int64_t at = s.base[round % 2];
    for (int i = 0; i < thread / 16; ++i) at += s.group[i];
    for (int i = thread / 16 * 16; i < thread; ++i) at += s.count[i];
    for (int i = 0; i < (thread * kEach < flags_of(round, s) ? kEach : 0); ++i) {
      if (!s.flag[thread * kEach + i]) continue;
      const int64_t unit = unit_at(row, round * kSelectTile + thread * kEach + i, s);
      list[at] = static_cast<int32_t>(unit);
      if (out.kind == BufferKind::kActive) to[1 + list_capacity(out) + at] = values[unit];
      if (tally != nullptr) count(tally + unit, uint32_t{1});
      ++at;
    }
    if (thread != kThreads - 1) return;
    s.base[(round + 1) % 2] = static_cast<int32_t>(at);
    if (round + 1 < n_rounds(row)) return;
    *reinterpret_cast<int32_t*>(to) = static_cast<int32_t>(at);
    add_counts(at, s.n_all);
  }

  HS_DEVICE void add_counts(int64_t n, int64_t n_looked_at) const {
    using N = unsigned long long;
    if (is_handed_over)
      count(&counters->to_host, static_cast<N>(out.kind == BufferKind::kActive ? 1 + 2 * n : 1 + n) * 4);
    if (!is_active) return;
    if (is_cold) count(&counters->on_host, static_cast<N>(n));
    count(&counters->active, static_cast<N>(n));
    count(&counters->total, static_cast<N>(n_units));
    count(&counters->candidates, static_cast<N>(n_looked_at));
  }
};

// h of every unit of a row, or of those that it lists, at their place in the list.
struct UnitRows : OneRound {
  StepView step;
  ActivationRule activation;
  bool is_gated = false;
  Rows products;   // of the up rows, by place; where not gated, of those rows if nothing else has them
  Rows gates;      // products of the gate rows by place; no data: see detected and lists
  Rows detected;   // by unit; no data: none
  Rows lists;      // no data: every unit
  Rows h;
  int64_t n_units = 0;
  Counters* counters = nullptr;

  HS_DEVICE int64_t n_tiles() const { return div_up(n_units, 4 * kThreads); }
  HS_DEVICE int64_t n_items() const { return step.head->n_rows * n_tiles(); }
  // What was computed before SparseFfn: a gate's product, or without gates the up row's.
  HS_DEVICE float known(int64_t row, int64_t place, const List& list) const {
    if (list.values != nullptr) return list.values[place];
    return detected.row(row)[list.units != nullptr ? list.units[place] : place];
  }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t row = item / n_tiles(), first = item % n_tiles() * 4 * kThreads;
    List list{nullptr, nullptr, n_units};
    if (lists.data != nullptr) {
      list = list_of(lists, row);
      if (lists.kind != BufferKind::kActive) list.values = nullptr;
      if (first == 0 && thread == 0) count(&counters->computed, static_cast<unsigned long long>(list.n));
    }
    for (int64_t i = first + thread; i < least(first + 4 * kThreads, list.n); i += kThreads) {
      const bool has_known = list.values != nullptr || detected.data != nullptr;
      const float up = !is_gated && has_known ? known(row, i, list) : products.row(row)[i];
      const float gate = !is_gated ? 0.0f : has_known ? known(row, i, list) : gates.row(row)[i];
      h.row(row)[i] = activated(activation, is_gated, gate, up);
    }
  }
};

// Where the sums of a row go: as they are, onto others, or as values.
struct SumsOut {
  Rows out, onto;               // onto without data: none
  const float* bias = nullptr;  // null: none
  HS_DEVICE void put(int64_t row, int64_t column, int64_t sum) const {
    if (onto.data != nullptr)
      out.sums(row)[column] = merged(sum, onto.sums(row)[column]);
    else if (out.kind == BufferKind::kSums)
      out.sums(row)[column] = sum;
    else
      out.row(row)[column] = bias != nullptr ? sum_value(sum) + bias[column] : sum_value(sum);
  }
};

// Most shares that the units of one row are cut into while rows are few, how many rows are few, and how many units are
// worth a share.
constexpr int64_t kUnitShares = 16;
constexpr int64_t kFewRows = 8;
constexpr int64_t kShareUnits = 64;
HS_DEVICE inline int64_t shares_of(const StepView& step, int64_t n_units) {
  const int64_t n = least(kUnitShares, div_up(n_units, kShareUnits));
  return step.head->n_rows <= kFewRows && n > 1 ? n : 1;
}

// Adds what unit `row`, weighing h, gives to 8 columns from c on. Where one may not, bit j of `bad` is set.
template <DType type>
HS_DEVICE inline void add_unit(const std::byte* row, float h, int64_t c, int64_t n_cols, int64_t* sum, uint32_t& bad) {
  if constexpr (!is_block_type(type)) {
    HS_UNROLL
    for (int j = 0; j < 8; ++j) {
      int64_t by = 0;
      if (c + j >= n_cols) continue;
      if (!to_sum_down(h, float_at<type>(row, c + j), by)) bad |= 1u << j;
      sum[j] = wrapped(sum[j], by);
    }
  } else {
    using B = Blocks<type>;
    const int64_t b = c / kBlock;
    const int first = static_cast<int>(c % kBlock / 4);  // word of the block
    const Scales scales = B::scales(row, b);
    int64_t s = 0, s_other = 0, s_m = 0;  // of these columns' half of the block, and of the other half
    bool good = to_sum(h, scales.d * static_cast<float>(first < 4 ? scales.c[0] : scales.c[1]), s);
    if (B::kHasHalves)
      good = to_sum(h, scales.d * static_cast<float>(first < 4 ? scales.c[1] : scales.c[0]), s_other) && good;
    if (B::kHasMinimum) good = to_sum(h, scales.d_m, s_m) && good;
    if (!good) bad = 0xffu;
    HS_UNROLL
    for (int j = 0; j < 8; ++j) {
      const uint32_t word = B::word(row, b, first + j / 4);
      const int64_t q = static_cast<int8_t>(word >> (j % 4 * 8));
      sum[j] = wrapped(sum[j], s * q - s_m);
    }
  }
}

// Exact sums of h times down rows. An item is a share of a row's units and 256 columns of it: 8 warps take every 8th
// unit, a thread 8 columns, so that a warp reads one piece of a row; sums stay in registers until the warps' are added.
// Must move: each listed row once.
template <DType type>
struct DownSums {
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kPasses = 2, kColumns = 256;
  struct Shared {
    int64_t sum[kWarps][kColumns];
  };
  StepView step;
  Matrix w;
  Rows h, lists;  // lists without data: every unit
  SumsOut to;
  int64_t* partials = nullptr;  // (kUnitShares, kFewRows, n_cols)

  HS_DEVICE int64_t n_tiles() const { return div_up(w.n_cols, kColumns); }
  HS_DEVICE int64_t n_items() const { return step.head->n_rows * n_tiles() * shares_of(step, w.n_rows); }
  HS_DEVICE int64_t n_rounds(int64_t) const { return 1; }

  HS_DEVICE void pass(int p, int64_t item, int64_t, int thread, Shared& s) const {
    const int64_t n_shares = shares_of(step, w.n_rows), share = item % n_shares;
    const int64_t first_col = item / n_shares % n_tiles() * kColumns, row = item / n_shares / n_tiles();
    if (p == 0) {
      int64_t sum[8] = {};
      uint32_t bad = 0;
      if (first_col + thread % 32 * 8 >= w.n_cols) return;
      add_share(row, share, n_shares, first_col + thread % 32 * 8, thread / 32, sum, bad);
      HS_UNROLL
      for (int j = 0; j < 8; ++j) s.sum[thread / 32][thread % 32 * 8 + j] = bad >> j & 1 ? kNoSum : sum[j];
      return;
    }
    const int64_t column = first_col + thread;
    if (column >= w.n_cols) return;
    int64_t sum = s.sum[0][thread];
    for (int i = 1; i < kWarps; ++i) sum = merged(sum, s.sum[i][thread]);
    if (n_shares == 1)
      to.put(row, column, sum);
    else
      partials[(share * kFewRows + row) * w.n_cols + column] = sum;
  }

 private:
  HS_DEVICE void add_share(int64_t row, int64_t share, int64_t n_shares, int64_t column, int warp, int64_t* sum,
                           uint32_t& bad) const {
    const bool is_listed = lists.data != nullptr;
    const List list = is_listed ? list_of(lists, row) : List{nullptr, nullptr, w.n_rows};
    const int64_t end = list.n * (share + 1) / n_shares;
    const float* const weighs = h.row(row);
    for (int64_t i = list.n * share / n_shares + warp; i < end; i += kWarps)
      if (weighs[i] != 0.0f)
        add_unit<type>(w.row(is_listed ? list.units[i] : i), weighs[i], column, w.n_cols, sum, bad);
  }
};

// Adds the shares of DownSums where rows are few.
struct MergeShares : OneRound {
  StepView step;
  const int64_t* partials = nullptr;
  int64_t n_units = 0, n_cols = 0;
  SumsOut to;
  HS_DEVICE int64_t n_tiles() const { return div_up(n_cols, kThreads); }
  HS_DEVICE int64_t n_items() const { return shares_of(step, n_units) == 1 ? 0 : step.head->n_rows * n_tiles(); }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t row = item / n_tiles(), column = item % n_tiles() * kThreads + thread;
    if (column >= n_cols) return;
    int64_t sum = 0;
    for (int64_t share = 0; share < shares_of(step, n_units); ++share)
      sum = merged(sum, partials[(share * kFewRows + row) * n_cols + column]);
    to.put(row, column, sum);
  }
};

}  // namespace hotset::cuda
