// Attention in chunks of 256 positions, each reduced on its own, then merged in order (cpu/kernels.h, AttendArgs).
//
// An item is up to 8 query heads of one KV head, so that keys and values are read once for them. While rows are few it
// is one chunk, whose state goes to memory for MergeAttention; else all chunks of the row, one a round, merged as they
// come.
// With a window the chunks before the first position that a row sees are left out, and that position may be anywhere in
// its chunk.
// Must move: keys and values of the positions that the row sees once for every 8 heads.
#pragma once

#include "cuda/kernel_rows.h"

namespace hotset::cuda {

constexpr int64_t kChunk = 256;       // positions
constexpr int kQueries = 8;           // query heads of an item
constexpr int kMostHeadDim = 256;
constexpr int64_t kSplitRows = 4;     // rows up to which chunks are split over blocks

// The first position that a row at `position` sees.
HS_DEVICE inline int64_t first_visible(int64_t position, int64_t window) {
  return window > 0 && position >= window ? position - window + 1 : 0;
}

// A query's maximum, sum of exponentials and weighted values.
HS_DEVICE inline void merge_scales(float m_a, float m_b, float& m, float& scale_a, float& scale_b) {
  m = m_a < m_b ? m_b : m_a;
  scale_a = library_exp(m_a - m);
  scale_b = library_exp(m_b - m);
}

struct AttendChunks {
  static constexpr int kThreads = 256, kPasses = 8;
  struct Shared {
    float q[kQueries][kMostHeadDim];
    float p[kQueries][kChunk];       // scores, then their exponentials
    float lane[kQueries][kLanes];    // of the maximum
    float sum[kQueries][kLanes];     // of the exponentials
    float m[kQueries], l[kQueries];  // of the chunks before this round's
    float o[kQueries][kMostHeadDim];
  };
  StepView step;
  KvPlace place;
  Rows q, out;
  int64_t n_head = 0;
  float scale = 0, softcap = 0;  // softcap 0: none
  int64_t window = 0;            // 0: all positions
  float* partials = nullptr;  // (kSplitRows, n_head, max_chunks, head_dim + 2): m, l, o
  int64_t max_chunks = 0;

  HS_DEVICE int64_t group() const { return n_head / place.layout.n_head_kv; }
  HS_DEVICE int64_t n_parts() const { return div_up(group(), kQueries); }  // of the heads of a KV head
  HS_DEVICE bool is_split() const { return step.head->n_rows <= kSplitRows; }
  HS_DEVICE int64_t n_chunks(int64_t row) const { return least(step.position(row) / kChunk + 1, max_chunks); }
  HS_DEVICE int64_t first_chunk(int64_t row) const { return first_visible(step.position(row), window) / kChunk; }
  HS_DEVICE int64_t n_items() const {
    return step.head->n_rows * place.layout.n_head_kv * n_parts() * (is_split() ? max_chunks : 1);
  }
  HS_DEVICE int64_t part_of(int64_t item) const { return is_split() ? item / max_chunks : item; }
  HS_DEVICE int64_t row_of(int64_t item) const { return part_of(item) / n_parts() / place.layout.n_head_kv; }
  HS_DEVICE int64_t n_rounds(int64_t item) const {
    const int64_t row = row_of(item), first = first_chunk(row), end = n_chunks(row), chunk = item % max_chunks;
    if (!is_split()) return end - first;
    return chunk >= first && chunk < end ? 1 : 0;
  }

  HS_DEVICE void pass(int p, int64_t item, int64_t round, int thread, Shared& s) const {
    const int64_t part = part_of(item), row = row_of(item), kv_head = part / n_parts() % place.layout.n_head_kv;
    const int64_t head = kv_head * group() + part % n_parts() * kQueries;  // the first of the item
    const int n = static_cast<int>(least(kQueries, group() - part % n_parts() * kQueries));
    const int64_t chunk = is_split() ? item % max_chunks : first_chunk(row) + round;
    const Seen seen = seen_of(step.position(row), chunk);
    switch (p) {
      case 0: return take_queries(row, head, n, round, thread, s);
      case 1: return score(row, kv_head, n, chunk, seen, thread, s);
      case 2: return largest(n, thread, s);
      case 3: return weigh(n, seen, thread, s);
      case 4: return add_weights(n, seen, thread, s);
      case 5: return add_values(row, kv_head, n, chunk, seen, round, thread, s);
      case 6: return merge_state(n, round, thread, s);
      default: return put(item, row, head, n, round, thread, s);
    }
  }

 private:
  // Positions [begin, end) of a chunk. The canonical sums go over whole groups of 16, where the others weigh 0.
  struct Seen {
    int64_t begin, end;
    HS_DEVICE int64_t first() const { return begin / kLanes * kLanes; }
    HS_DEVICE int64_t last() const { return div_up(end, kLanes) * kLanes; }
  };
  HS_DEVICE Seen seen_of(int64_t position, int64_t chunk) const {
    const int64_t begin = first_visible(position, window) - chunk * kChunk;
    return {begin > 0 ? begin : 0, least(kChunk, position + 1 - chunk * kChunk)};
  }

  HS_DEVICE void take_queries(int64_t row, int64_t head, int n, int64_t round, int thread, Shared& s) const {
    const int64_t d = place.layout.head_dim;
    if (round != 0) return;
    for (int64_t i = thread; i < n * d; i += kThreads) s.q[i / d][i % d] = q.row(row)[head * d + i];
  }

  // Thread t: the scores of position t.
  HS_DEVICE void score(int64_t row, int64_t kv_head, int n, int64_t chunk, const Seen& seen, int thread,
                       Shared& s) const {
    if (thread < seen.begin || thread >= seen.end) {
      for (int i = 0; i < n; ++i) s.p[i][thread] = -infinity();
      return;
    }
    const std::byte* const key = place.row(step.blocks(row), chunk * kChunk + thread, kv_head, false);
    for (int i = 0; i < n; ++i) {
      const float score = dot(key, s.q[i]) * scale;
      s.p[i][thread] = softcap != 0.0f ? soft_capped(score, softcap) : score;
    }
  }

  HS_DEVICE float dot(const std::byte* key, const float* query) const {
    const int64_t d = place.layout.head_dim;
    float lane[kLanes] = {};
    for (int64_t first = 0; first < d; first += kLanes) {
      HS_UNROLL
      for (int i = 0; i < kLanes; ++i)
        if (first + i < d) lane[i] = fused(kv_element(key, first + i), query[first + i], lane[i]);
    }
    return lane_tree(lane);
  }

  HS_DEVICE float kv_element(const std::byte* row, int64_t i) const {
    if (place.layout.dtype == DType::kF16) return float_at<DType::kF16>(row, i);
    if (place.layout.dtype == DType::kF32) return float_at<DType::kF32>(row, i);
    return half_to_float(load<uint16_t>(row + i / kBlock * 34)) *
           static_cast<float>(load<int8_t>(row + i / kBlock * 34 + 2 + i % kBlock));
  }

  // The largest score by 16 threads a query; NaN is left out, and so it does not matter in which order.
  HS_DEVICE void largest(int n, int thread, Shared& s) const {
    const int i = thread / kLanes, lane = thread % kLanes;
    if (i >= n) return;
    float most = -infinity();
    for (int64_t t = lane; t < kChunk; t += kLanes) most = s.p[i][t] > most ? s.p[i][t] : most;
    s.lane[i][lane] = most;
  }
  HS_DEVICE float maximum(int i, const Shared& s) const {
    float most = s.lane[i][0];
    for (int j = 1; j < kLanes; ++j) most = s.lane[i][j] > most ? s.lane[i][j] : most;
    return most + 0.0f;
  }

  HS_DEVICE void weigh(int n, const Seen& seen, int thread, Shared& s) const {
    if (thread < seen.first() || thread >= seen.last()) return;
    for (int i = 0; i < n; ++i) s.p[i][thread] = exp_value(s.p[i][thread] - maximum(i, s));
  }

  HS_DEVICE void add_weights(int n, const Seen& seen, int thread, Shared& s) const {
    const int i = thread / kLanes, lane = thread % kLanes;
    if (i >= n) return;
    float sum = 0.0f;
    for (int64_t t = seen.first() + lane; t < seen.last(); t += kLanes) sum += s.p[i][t];
    s.sum[i][lane] = sum;
  }
  HS_DEVICE float weight_sum(int i, const Shared& s) const {
    float lane[kLanes];
    HS_UNROLL
    for (int j = 0; j < kLanes; ++j) lane[j] = s.sum[i][j];
    return lane_tree(lane);
  }

  // Thread d: column d of the values, merged with that of the chunks before.
  HS_DEVICE void add_values(int64_t row, int64_t kv_head, int n, int64_t chunk, const Seen& seen, int64_t round,
                            int thread, Shared& s) const {
    if (thread >= place.layout.head_dim) return;
    std::byte* const* const blocks = step.blocks(row);
    float sum[kQueries] = {};
    for (int64_t t = seen.begin; t < seen.end; ++t) {
      const float value = kv_element(place.row(blocks, chunk * kChunk + t, kv_head, true), thread);
      HS_UNROLL
      for (int i = 0; i < kQueries; ++i)
        if (i < n) sum[i] = fused(s.p[i][t], value, sum[i]);
    }
    HS_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      if (i >= n) continue;
      const float m_b = maximum(i, s);
      if (round == 0) {
        s.o[i][thread] = sum[i];
      } else if (m_b != -infinity()) {
        float m, scale_a, scale_b;
        merge_scales(s.m[i], m_b, m, scale_a, scale_b);
        const float o_a = s.o[i][thread] * scale_a, o_b = sum[i] * scale_b;
        s.o[i][thread] = o_a + o_b;
      }
    }
  }

  // Threads 0 .. n - 1: m and l of one query each. Nobody else reads them in this pass.
  HS_DEVICE void merge_state(int n, int64_t round, int i, Shared& s) const {
    if (i >= n) return;
    const float m_b = maximum(i, s), l_b = weight_sum(i, s);
    if (round == 0) {
      s.m[i] = m_b, s.l[i] = l_b;
    } else if (m_b != -infinity()) {
      float m, scale_a, scale_b;
      merge_scales(s.m[i], m_b, m, scale_a, scale_b);
      const float l_a = s.l[i] * scale_a, l_c = l_b * scale_b;
      s.m[i] = m, s.l[i] = l_a + l_c;
    }
  }

  HS_DEVICE void put(int64_t item, int64_t row, int64_t head, int n, int64_t round, int d, const Shared& s) const {
    const int64_t head_dim = place.layout.head_dim;
    if (round + 1 < n_rounds(item) || d >= head_dim) return;
    for (int i = 0; i < n; ++i) {
      if (!is_split()) {
        out.row(row)[(head + i) * head_dim + d] = s.o[i][d] * (1.0f / s.l[i]);
        continue;
      }
      float* const record = partials + ((row * n_head + head + i) * max_chunks + item % max_chunks) * (head_dim + 2);
      record[2 + d] = s.o[i][d];
      if (d == 0) record[0] = s.m[i], record[1] = s.l[i];
    }
  }
};

// Merges the chunks of a head in order where they were split; a thread has one column.
struct MergeAttention : OneRound {
  StepView step;
  Rows out;
  int64_t n_head = 0, head_dim = 0, max_chunks = 0, window = 0;
  const float* partials = nullptr;
  HS_DEVICE int64_t n_items() const { return step.head->n_rows <= kSplitRows ? step.head->n_rows * n_head : 0; }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    if (thread >= head_dim) return;
    const int64_t row = item / n_head, n_chunks = least(step.position(row) / kChunk + 1, max_chunks);
    const int64_t first = first_visible(step.position(row), window) / kChunk;
    const float* record = partials + (item * max_chunks + first) * (head_dim + 2);
    float m = record[0], l = record[1], o = record[2 + thread];
    for (int64_t chunk = first + 1; chunk < n_chunks; ++chunk) {
      record += head_dim + 2;
      if (record[0] == -infinity()) continue;
      float scale_a, scale_b;
      merge_scales(m, record[0], m, scale_a, scale_b);
      const float l_a = l * scale_a, l_b = record[1] * scale_b;
      const float o_a = o * scale_a, o_b = record[2 + thread] * scale_b;
      l = l_a + l_b, o = o_a + o_b;
    }
    out.row(row)[item % n_head * head_dim + thread] = o * (1.0f / l);
  }
};

}  // namespace hotset::cuda
