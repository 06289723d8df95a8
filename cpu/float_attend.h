// Attention over one chunk of a KV cache. Needs float_dot.h, float_row_sum.h and float_math.h.
#pragma once

#include "cpu/float_dot.h"
#include "cpu/float_math.h"
#include "cpu/float_row_sum.h"

namespace hotset::cpu {
namespace {

constexpr int kScoreRows = 4;             // positions scored at once for few queries: short dots need several sums
constexpr int64_t kGroup = 2 * kSumActs;  // queries whose scores are held at a time, kChunkPositions floats each
constexpr int64_t kKeysAhead = 16;        // positions between reading a key and asking for another
constexpr int64_t kWidenFor = 2 * kDotActs;  // queries from which on a chunk is widened to float first, once for all

// Queries [first, first + n) of a call and the range of positions that any of them sees.
struct QueryGroup {
  const AttendArgs& args;
  int64_t first;
  int64_t n;
  int64_t begin = kChunkPositions;
  int64_t end = 0;

  QueryGroup(const AttendArgs& args_in, int64_t first_in, int64_t n_in) : args(args_in), first(first_in), n(n_in) {
    for (int64_t i = 0; i < n; ++i) {
      if (begin_of(i) >= end_of(i)) continue;
      if (begin_of(i) < begin) begin = begin_of(i);
      if (end_of(i) > end) end = end_of(i);
    }
  }

  float* scores_of(int64_t i) const { return reinterpret_cast<float*>(args.scratch) + i * kChunkPositions; }
  int64_t begin_of(int64_t i) const { return args.begin[first + i]; }
  int64_t end_of(int64_t i) const { return args.end[first + i]; }
};

// Asks for positions [t, t + n) of keys or values, within one page. Always inline: gcc 12 takes a function that only
// prefetches for one without effect and drops the call, which halved the rate of attention in memory.
template <class T>
[[gnu::always_inline]] inline void prefetch_positions(const std::byte* const* pages, int64_t head_dim, int64_t t,
                                                      int64_t n) {
  const int64_t row_bytes = T::offset(head_dim);
  const std::byte* const row = pages[t / kPagePositions] + t % kPagePositions * row_bytes;
  for (int64_t byte = 0; byte < n * row_bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
}

// scores[i][t] = dot(q_i, k_t) for every t in the group's range, R positions at a time.
template <class T, int R>
inline void score_group(const QueryGroup& group) {
  const AttendArgs& args = group.args;
  const auto row_at = [&](int64_t t) {
    return args.k_pages[t / kPagePositions] + T::offset(t % kPagePositions * args.head_dim);
  };
  const float* const* q = args.q + group.first;
  int64_t t = group.begin;
  for (; t + R <= group.end; t += R) {
    const std::byte* rows[R];
    for (int i = 0; i < R; ++i) rows[i] = row_at(t + i);
    if (group.first == 0) {  // keys to be read soon, and values, to be read after the scores
      if (t + kKeysAhead < group.end) prefetch_positions<T>(args.k_pages, args.head_dim, t + kKeysAhead, R);
      prefetch_positions<T>(args.v_pages, args.head_dim, t, R);
    }
    dot_tiles<T, R>(rows, q, group.n, args.head_dim, group.scores_of(0) + t, kChunkPositions);
  }
  for (; t < group.end; ++t) {
    const std::byte* const rows[1] = {row_at(t)};
    dot_tiles<T, 1>(rows, q, group.n, args.head_dim, group.scores_of(0) + t, kChunkPositions);
  }
}

// The largest of n (a multiple of 16) values, NaN left out, +0 for either zero: independent of the order.
inline float largest_of(const float* s, int64_t n) {
  Vec many = splat(-__builtin_inff());
  for (int64_t t = 0; t < n; t += kWidth) many = max(load(s + t), many);
  float each[kWidth];
  store(each, many);
  float one = each[0];
  for (int j = 1; j < kWidth; ++j) one = each[j] > one ? each[j] : one;
  return one + 0.0f;
}

// Turns the dots of query i into p and gives its m and l. What it does not see counts as p = 0 in l.
inline void softmax_query(const QueryGroup& group, int64_t i) {
  const AttendArgs& args = group.args;
  const int64_t begin = group.begin_of(i);
  const int64_t end = group.end_of(i);
  float* const s = group.scores_of(i);
  const int64_t first = begin & ~int64_t{15};
  const int64_t last = (end + 15) & ~int64_t{15};
  const auto fill_unseen = [&](float value) {
    for (int64_t t = first; t < begin; ++t) s[t] = value;
    for (int64_t t = end; t < last; ++t) s[t] = value;
  };
  fill_unseen(0.0f);
  const Vec scale = splat(args.scale);
  const Vec cap = splat(args.softcap);
  for (int64_t t = first; t < last; t += kWidth) {
    Vec score = mul(load(s + t), scale);
    if (args.softcap != 0.0f) score = mul(cap, tanh_vec(div(score, cap)));
    store(s + t, score);
  }
  fill_unseen(-__builtin_inff());
  const float m = largest_of(s + first, last - first);
  Vec lanes[kParts];
  for (int p = 0; p < kParts; ++p) lanes[p] = zero();
  for (int64_t t = first; t < last; t += 16) {
    for (int p = 0; p < kParts; ++p) {
      const Vec weight = exp_vec(sub(load(s + t + p * kWidth), splat(m)));
      store(s + t + p * kWidth, weight);
      lanes[p] = add(lanes[p], weight);
    }
  }
  args.m[group.first + i] = m;
  args.l[group.first + i] = lane_tree(lanes);
}

// o of n queries from query i of the group on += sum over t in [begin, end) of p[t] * v_t, page by page.
template <class T>
inline void add_values(const QueryGroup& group, int64_t i, int64_t n, int64_t begin, int64_t end) {
  const AttendArgs& args = group.args;
  float* const o = args.o + (group.first + i) * args.o_stride;
  const size_t row_bytes = static_cast<size_t>(T::offset(args.head_dim));
  for (int64_t t = begin; t < end;) {
    const int64_t page_end = (t / kPagePositions + 1) * kPagePositions;
    const int64_t stop = page_end < end ? page_end : end;
    const std::byte* row = args.v_pages[t / kPagePositions] + static_cast<size_t>(t % kPagePositions) * row_bytes;
    sum_rows<T>(SumRows{row, row_bytes, stop - t, group.scores_of(i) + t, kChunkPositions}, n, args.head_dim, o,
                args.o_stride);
    t = stop;
  }
}

// Values of a group: positions that all queries see go together, those before and after query by query. An unseen
// position must not even be multiplied by 0: its value may be infinite, and adding +0 would lose the sign of a -0.
template <class T>
inline void value_group(const QueryGroup& group) {
  int64_t common_begin = 0;
  int64_t common_end = kChunkPositions;
  for (int64_t i = 0; i < group.n; ++i) {
    if (group.begin_of(i) > common_begin) common_begin = group.begin_of(i);
    if (group.end_of(i) < common_end) common_end = group.end_of(i);
  }
  if (common_begin >= common_end) {
    for (int64_t i = 0; i < group.n; ++i) add_values<T>(group, i, 1, group.begin_of(i), group.end_of(i));
    return;
  }
  for (int64_t i = 0; i < group.n; ++i) add_values<T>(group, i, 1, group.begin_of(i), common_begin);
  add_values<T>(group, 0, group.n, common_begin, common_end);
  for (int64_t i = 0; i < group.n; ++i) add_values<T>(group, i, 1, common_end, group.end_of(i));
}

template <class T>
inline void attend_group(const QueryGroup& group) {
  const AttendArgs& args = group.args;
  if (group.n < kDotActs)  // few queries: more rows at once, or too few sums would be under way
    score_group<T, kScoreRows>(group);
  else
    score_group<T, kDotRows>(group);
  for (int64_t i = 0; i < group.n; ++i) {
    float* const o = args.o + (group.first + i) * args.o_stride;
    for (int64_t d = 0; d < args.head_dim; ++d) o[d] = 0.0f;
    if (group.begin_of(i) < group.end_of(i)) {
      softmax_query(group, i);
    } else {
      args.m[group.first + i] = -__builtin_inff();
      args.l[group.first + i] = 0.0f;
    }
  }
  value_group<T>(group);
}

template <class T>
inline void attend_as(const AttendArgs& args) {
  for (int64_t i = 0; i < args.n_q; i += kGroup)
    attend_group<T>(QueryGroup(args, i, args.n_q - i < kGroup ? args.n_q - i : kGroup));
}

// Many queries: keys and values are widened into scratch, behind the scores, which changes no product.
template <class T>
inline void attend_widened(const AttendArgs& args) {
  constexpr int64_t kPages = kChunkPositions / kPagePositions;
  const std::byte* pages[2][kPages];
  float* to = reinterpret_cast<float*>(args.scratch) + kGroup * kChunkPositions;
  for (int64_t t = 0; t < args.n_pos; t += kPagePositions) {
    const int64_t page = t / kPagePositions;
    const int64_t n_rows = args.n_pos - t < kPagePositions ? args.n_pos - t : kPagePositions;
    for (int which = 0; which < 2; ++which) {
      const std::byte* const* const from = which == 0 ? args.k_pages : args.v_pages;
      const int64_t next = t + kPagePositions;
      if (next < args.n_pos) prefetch_positions<T>(from, args.head_dim, next, kPagePositions);
      widen<T>(from[page], 0, n_rows * args.head_dim, to);
      pages[which][page] = reinterpret_cast<const std::byte*>(to);
      to += kPagePositions * args.head_dim;
    }
  }
  AttendArgs wide = args;
  wide.k_pages = pages[0];
  wide.v_pages = pages[1];
  wide.kv_type = kWeightF32;
  attend_as<WeightF32>(wide);
}

template <class T>
inline void attend(const AttendArgs& args) {
  if (args.n_q >= kWidenFor)
    attend_widened<T>(args);
  else
    attend_as<T>(args);
}

void attend_chunk(const AttendArgs& args) {
  switch (args.kv_type) {
    case kWeightF16: return attend<WeightF16>(args);
    case kWeightQ8_0: return attend<WeightQ8_0>(args);
    default: return attend_as<WeightF32>(args);
  }
}

size_t attend_scratch_bytes(int64_t head_dim) {
  return static_cast<size_t>((kGroup + 2 * head_dim) * kChunkPositions) * sizeof(float);
}

}  // namespace
}  // namespace hotset::cpu
