#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/phases.h"

namespace hotset::cpu {
namespace {

constexpr int64_t kMaxPages = kChunkPositions / kPagePositions;
static_assert(kPagePositions == KvLayout::kBlockPositions);

// Query heads that one task handles, over rows and heads of a KV group.
constexpr int64_t kMaxQueries = 64;

int64_t round_up_16(int64_t n) { return div_up(n, 16) * 16; }

int64_t max_queries(int64_t group) { return attention_tile_rows(group) * group; }

// Softmax state of one query: maximum, sum of exponentials, weighted sum of values (head_dim).
struct State {
  float* m;
  float* l;
  float* o;
};

// a = a merged with chunk b, in this order: the canonical way chunks join. A chunk that shows the query nothing is
// skipped, because a row computed alone never meets it.
void merge(const State& a, const State& b, int64_t head_dim) {
  if (*b.m == -INFINITY) return;
  if (*a.l == 0) {  // before the query's window: nothing was seen yet
    *a.m = *b.m, *a.l = *b.l;
    std::memcpy(a.o, b.o, static_cast<size_t>(head_dim) * sizeof(float));
    return;
  }
  const float m = std::max(*a.m, *b.m);
  // Differences of chunk maxima are few, so the C library's exp is fast enough; on one machine it is always the same.
  const float scale_a = std::exp(*a.m - m);
  const float scale_b = std::exp(*b.m - m);
  const float l_a = *a.l * scale_a;
  const float l_b = *b.l * scale_b;
  *a.m = m;
  *a.l = l_a + l_b;
  for (int64_t d = 0; d < head_dim; ++d) {
    const float o_a = a.o[d] * scale_a;
    const float o_b = b.o[d] * scale_b;
    a.o[d] = o_a + o_b;
  }
}

void write_out(const State& state, int64_t head_dim, float* out) {
  const float inverse = 1.0f / *state.l;
  for (int64_t d = 0; d < head_dim; ++d) out[d] = state.o[d] * inverse;
}

int64_t position_of(const StepContext& context, int64_t row) {
  return context.params.rows[static_cast<size_t>(row)].position;
}

int64_t chunks_of(const StepContext& context, const RowTile& tile) {
  return position_of(context, tile.first_row + tile.n_rows - 1) / kChunkPositions + 1;
}

// The first chunk that any row of a tile sees.
int64_t first_chunk_of(const AttentionShape& shape, const StepContext& context, const RowTile& tile) {
  return shape.first_chunk(position_of(context, tile.first_row));
}

// Chunks of the longest row when chunks are split over tasks, which few rows of not too long contexts are; else 0.
int64_t split_of(const StepContext& context) {
  if (context.n_rows > kFewRows) return 0;
  int64_t n = 0;
  for (const RowTile& tile : context.tiles) n = std::max(n, chunks_of(context, tile));
  return n <= kMaxSplitChunks ? n : 0;
}

}  // namespace

void store_kv_row(const Kernels& kernels, DType dtype, const float* from, int64_t n, std::byte* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  if (dtype == DType::kF16) return kernels.f32_to_f16_row(from, n, reinterpret_cast<uint16_t*>(to));
  constexpr int64_t kBlockBytes = 2 + kBlock;
  for (int64_t at = 0; at < n; at += kBlock, to += kBlockBytes) {
    int8_t q[kBlock];
    float scale;
    int32_t sum;
    uint16_t half;
    kernels.quantize_activation(from + at, kBlock, q, &scale, &sum);
    kernels.f32_to_f16_row(&scale, 1, &half);
    std::memcpy(to, &half, sizeof half);
    std::memcpy(to + sizeof half, q, sizeof q);
  }
}

int64_t attention_tile_rows(int64_t group) { return std::max<int64_t>(1, kMaxQueries / group); }

// Per worker: the kernel's scratch, then query pointers, begin, end, and two states per query.
size_t attention_scratch_bytes(const Kernels& kernels, int64_t group, int64_t head_dim) {
  const size_t n = static_cast<size_t>(max_queries(group));
  const size_t kernel = (kernels.attend_scratch_bytes(head_dim) + 63) / 64 * 64;
  return kernel + n * (sizeof(float*) + 2 * sizeof(int32_t)) + 64 +
         2 * n * (2 + static_cast<size_t>(round_up_16(head_dim))) * sizeof(float) + 256;
}

namespace {

// The work of one (tile, KV head): gathers its queries once, then computes chunks.
class TileWork {
 public:
  TileWork(const AttentionShape& shape, const StepContext& context, const RowTile& tile, int64_t kv_head,
           std::byte* scratch)
      : shape_(shape), context_(context), tile_(tile), kv_head_(kv_head), stride_(round_up_16(shape.head_dim)) {
    const size_t n = static_cast<size_t>(max_queries(shape.group()));
    kernel_scratch_ = scratch;
    std::byte* at = scratch + (context.kernels.attend_scratch_bytes(shape.head_dim) + 63) / 64 * 64;
    queries_ = reinterpret_cast<const float**>(at);
    at += n * sizeof(float*);
    begin_ = reinterpret_cast<int32_t*>(at);
    end_ = begin_ + n;
    at += 2 * n * sizeof(int32_t);
    float* floats = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(at) + 63) / 64 * 64);
    for (int i = 0; i < 2; ++i) {
      o_[i] = floats;
      floats += n * static_cast<size_t>(stride_);
    }
    for (int i = 0; i < 2; ++i) {
      m_[i] = floats;
      l_[i] = floats + n;
      floats += 2 * n;
    }
    for (int64_t row = 0; row < tile.n_rows; ++row)
      for (int64_t g = 0; g < shape.group(); ++g)
        queries_[n_queries_++] = shape.q.row(tile.first_row + row) + (kv_head * shape.group() + g) * shape.head_dim;
  }

  int64_t n_queries() const { return n_queries_; }
  int64_t row_of(int64_t query) const { return tile_.first_row + query / shape_.group(); }
  int64_t head_of(int64_t query) const { return kv_head_ * shape_.group() + query % shape_.group(); }
  State state(int which, int64_t query) const {
    return {m_[which] + query, l_[which] + query, o_[which] + query * stride_};
  }

  // Computes one chunk of all queries into state `which`.
  void attend(int64_t chunk, int which) {
    const Row& first = context_.params.rows[static_cast<size_t>(tile_.first_row)];
    const auto& sequence = context_.params.sequences[static_cast<size_t>(first.sequence)];
    const auto& blocks = *sequence.blocks[static_cast<size_t>(shape_.lane)];
    const std::byte* k_pages[kMaxPages];
    const std::byte* v_pages[kMaxPages];
    int64_t n_pos = 0;
    for (int64_t i = 0; i < n_queries_; ++i) {
      const int64_t position = position_of(context_, row_of(i)), chunk_begin = chunk * kChunkPositions;
      const auto within = [&](int64_t at) { return static_cast<int32_t>(std::clamp<int64_t>(at, 0, kChunkPositions)); };
      begin_[i] = within(shape_.first_visible(position) - chunk_begin);
      end_[i] = within(position + 1 - chunk_begin);
      n_pos = std::max<int64_t>(n_pos, end_[i]);
    }
    for (int64_t page = 0; page < div_up(n_pos, kPagePositions); ++page) {
      const std::byte* block = blocks[static_cast<size_t>(chunk * kMaxPages + page)];
      k_pages[page] = block + shape_.kv.page_offset(shape_.layer, kv_head_, false);
      v_pages[page] = block + shape_.kv.page_offset(shape_.layer, kv_head_, true);
    }
    AttendArgs args;
    args.q = queries_;
    args.begin = begin_;
    args.end = end_;
    args.n_q = n_queries_;
    args.k_pages = k_pages;
    args.v_pages = v_pages;
    args.kv_type = static_cast<WeightType>(weight_type(shape_.kv.dtype));
    args.n_pos = n_pos;
    args.head_dim = shape_.head_dim;
    args.scale = shape_.scale;
    args.softcap = shape_.softcap;
    args.m = m_[which];
    args.l = l_[which];
    args.o = o_[which];
    args.o_stride = stride_;
    args.scratch = kernel_scratch_;
    context_.kernels.attend_chunk(args);
  }

 private:
  const AttentionShape& shape_;
  const StepContext& context_;
  const RowTile& tile_;
  const int64_t kv_head_;
  const int64_t stride_;
  int64_t n_queries_ = 0;
  std::byte* kernel_scratch_;
  const float** queries_;
  int32_t* begin_;
  int32_t* end_;
  float* m_[2];
  float* l_[2];
  float* o_[2];
};

float* partial_record(const AttentionShape& shape, int64_t row, int64_t head, int64_t chunk) {
  return shape.partials + ((row * shape.n_head + head) * shape.max_chunks + chunk) * shape.record();
}

State record_state(float* record) { return {record, record + 1, record + 2}; }

}  // namespace

int64_t AttentionPhase::n_tasks(const StepContext& context) const {
  return static_cast<int64_t>(context.tiles.size()) * shape_.n_head_kv * std::max<int64_t>(1, split_of(context));
}

void AttentionPhase::run(int64_t task, int32_t worker, const StepContext& context) const {
  const int64_t n_split = split_of(context);
  const int64_t split = std::max<int64_t>(1, n_split);
  const int64_t chunk = task % split;
  const int64_t kv_head = task / split % shape_.n_head_kv;
  const RowTile& tile = context.tiles[static_cast<size_t>(task / split / shape_.n_head_kv)];
  const int64_t first_chunk = first_chunk_of(shape_, context, tile), n_chunks = chunks_of(context, tile);
  TileWork work(shape_, context, tile, kv_head, shape_.scratch + static_cast<size_t>(worker) * shape_.scratch_distance);
  if (n_split > 0) {
    if (chunk < first_chunk || chunk >= n_chunks) return;
    work.attend(chunk, 0);
    for (int64_t i = 0; i < work.n_queries(); ++i) {
      const State from = work.state(0, i);
      const State to = record_state(partial_record(shape_, work.row_of(i), work.head_of(i), chunk));
      *to.m = *from.m;
      *to.l = *from.l;
      std::memcpy(to.o, from.o, static_cast<size_t>(shape_.head_dim) * sizeof(float));
    }
    return;
  }
  work.attend(first_chunk, 0);
  for (int64_t next = first_chunk + 1; next < n_chunks; ++next) {
    work.attend(next, 1);
    for (int64_t i = 0; i < work.n_queries(); ++i) merge(work.state(0, i), work.state(1, i), shape_.head_dim);
  }
  for (int64_t i = 0; i < work.n_queries(); ++i)
    write_out(work.state(0, i), shape_.head_dim, shape_.out.row(work.row_of(i)) + work.head_of(i) * shape_.head_dim);
}

// (row, head) pairs of one task: all of them while there is little to merge, else a share for every worker.
int64_t AttentionMergePhase::pairs_per_task(const StepContext& context) const {
  const int64_t n_pairs = context.n_rows * shape_.n_head;
  return split_of(context) <= 4 ? n_pairs : div_up(n_pairs, 2 * context.n_workers);
}

int64_t AttentionMergePhase::n_tasks(const StepContext& context) const {
  return split_of(context) > 0 ? div_up(context.n_rows * shape_.n_head, pairs_per_task(context)) : 0;
}

void AttentionMergePhase::run(int64_t task, int32_t, const StepContext& context) const {
  const int64_t each = pairs_per_task(context);
  const int64_t end = std::min(context.n_rows * shape_.n_head, (task + 1) * each);
  for (int64_t pair = task * each; pair < end; ++pair) {
    const int64_t row = pair / shape_.n_head, head = pair % shape_.n_head;
    const int64_t position = position_of(context, row);
    const int64_t first = shape_.first_chunk(position), n_chunks = position / kChunkPositions + 1;
    const State state = record_state(partial_record(shape_, row, head, first));
    for (int64_t chunk = first + 1; chunk < n_chunks; ++chunk)
      merge(state, record_state(partial_record(shape_, row, head, chunk)), shape_.head_dim);
    write_out(state, shape_.head_dim, shape_.out.row(row) + head * shape_.head_dim);
  }
}

}  // namespace hotset::cpu
