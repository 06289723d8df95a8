// Kernels that go over rows and columns: embedding, norms, rotation, keys and values, additions, copies. All move each
// element once or twice; none is worth more than coalesced access.
#pragma once

#include "cuda/kernel_base.h"

namespace hotset::cuda {

// Elements of one item of an element-wise kernel: each thread has four, kThreads apart.
constexpr int64_t kTile = 1024;
constexpr int kTileThreads = 256;

// A kernel of one pass over tiles of columns: Derived has rows(), n_cols() and element(row, column).
template <class Derived>
struct Elementwise : OneRound {
  HS_DEVICE const Derived& self() const { return static_cast<const Derived&>(*this); }
  HS_DEVICE int64_t n_tiles() const { return div_up(self().n_cols(), kTile); }
  HS_DEVICE int64_t n_items() const { return self().n_rows() * n_tiles(); }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t row = item / n_tiles(), first = item % n_tiles() * kTile;
    for (int64_t i = first + thread; i < least(first + kTile, self().n_cols()); i += kTileThreads)
      self().element(row, i);
  }
};

// Brings what the host wrote for this step to the device.
struct TakeStep : OneRound {
  const StepHead* from = nullptr;  // pinned
  StepHead* to = nullptr;
  HS_DEVICE int64_t n_items() const { return div_up(from->n_words, kTile); }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t end = least((item + 1) * kTile, from->n_words);
    for (int64_t i = item * kTile + thread; i < end; i += kThreads)
      reinterpret_cast<int32_t*>(to)[i] = reinterpret_cast<const int32_t*>(from)[i];
  }
};

// Brings the counters to where the host reads them.
struct ShowCounters : OneRound {
  const Counters* from = nullptr;
  Counters* to = nullptr;
  HS_DEVICE int64_t n_items() const { return 1; }
  HS_DEVICE void pass(int, int64_t, int64_t, int thread, NoShared&) const {
    if (thread == 0) *to = *from;
  }
};

struct EmbedRows : Elementwise<EmbedRows> {
  StepView step;
  Matrix table;
  Rows out;
  bool by_position = false;  // adds the row of the position, else the row of the token is the value
  float scale = 1;           // of the row of the token
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return table.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const {
    const int64_t at = by_position ? step.position(row) : step.token(row);
    const float value = cuda::element(table.dtype, table.row(at), i);
    out.row(row)[i] = by_position ? out.row(row)[i] + value : value * scale;
  }
};

struct CopyAngles : Elementwise<CopyAngles> {
  StepView step;
  Rows out;
  int64_t n_before = 0;  // columns of the tables before this one
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return out.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const {
    const float* const tables = reinterpret_cast<const float*>(step.words(step.head->angles));
    out.row(row)[i] = tables[n_rows() * n_before + row * out.n_cols + i];
  }
};

// One thread rotates one pair.
struct RotatePairs : Elementwise<RotatePairs> {
  StepView step;
  Rows angles, x;
  int64_t n_head = 0, head_dim = 0, n_rot = 0;
  bool interleaved = false;
  HS_DEVICE int64_t n_rows() const { return step.n_rows(x.rows); }
  HS_DEVICE int64_t n_cols() const { return n_head * (n_rot / 2); }
  HS_DEVICE void element(int64_t row, int64_t pair) const {
    const int64_t half = n_rot / 2, i = pair % half;
    float* const head = x.row(row) + pair / half * head_dim;
    float& x0 = head[interleaved ? 2 * i : i];
    float& x1 = head[interleaved ? 2 * i + 1 : i + half];
    const float cosine = angles.row(row)[i], sine = angles.row(row)[half + i], old0 = x0, old1 = x1;
    x0 = old0 * cosine - old1 * sine;
    x1 = old0 * sine + old1 * cosine;
  }
};

// Norm of a row, or of one of its heads, by one block. 16 threads make the canonical sums, which are chains of n / 16
// additions.
struct NormRows {
  static constexpr int kThreads = 256, kPasses = 4;
  struct Shared {
    float lane[kLanes];
  };
  StepView step;
  NormKind kind = NormKind::kRms;
  float eps = 0;
  const float *weight = nullptr, *bias = nullptr;  // bias null: none
  Rows in, out;
  int64_t n_head = 1, n = 0;  // parts of a row that are normed each on its own, and elements of one
  HS_DEVICE int64_t n_items() const { return step.n_rows(in.rows) * n_head; }
  HS_DEVICE int64_t n_rounds(int64_t) const { return 1; }
  HS_DEVICE float total(const Shared& s) const {
    float lane[kLanes];
    HS_UNROLL
    for (int i = 0; i < kLanes; ++i) lane[i] = s.lane[i];
    return lane_tree(lane);
  }
  HS_DEVICE void pass(int p, int64_t item, int64_t, int thread, Shared& s) const {
    const float* const x = in.row(item / n_head) + item % n_head * n;
    float* const y = out.row(item / n_head) + item % n_head * n;
    const bool is_layer = kind == NormKind::kLayer;
    if (p == 0 && is_layer && thread < kLanes) {
      float sum = 0.0f;
      for (int64_t i = thread; i < n; i += kLanes) sum += x[i];
      s.lane[thread] = sum;
    } else if (p == 1 && is_layer) {
      const float mean = total(s) / static_cast<float>(n);
      for (int64_t i = thread; i < n; i += kThreads) y[i] = x[i] - mean;
    } else if (p == 2 && thread < kLanes) {
      const float* const from = is_layer ? y : x;
      float sum = 0.0f;
      for (int64_t i = thread; i < n; i += kLanes) sum = fused(from[i], from[i], sum);
      s.lane[thread] = sum;
    } else if (p == 3) {
      const float inverse = 1.0f / sqrtf(total(s) / static_cast<float>(n) + eps);
      const float* const from = is_layer ? y : x;
      for (int64_t i = thread; i < n; i += kThreads) {
        const float value = from[i] * inverse * weight[i];
        y[i] = bias != nullptr ? value + bias[i] : value;
      }
    }
  }
};

// 8-bit blocks of rows; one thread makes one block.
struct QuantizeRows : OneRound {
  StepView step;
  Acts acts;
  HS_DEVICE int64_t n_blocks() const { return div_up(acts.f32.n_cols, kBlock); }
  HS_DEVICE int64_t n_tiles() const { return div_up(n_blocks(), kThreads); }
  HS_DEVICE int64_t n_items() const { return step.n_rows(acts.f32.rows) * n_tiles(); }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t row = item / n_tiles(), b = item % n_tiles() * kThreads + thread;
    if (b >= n_blocks()) return;
    const int64_t n = least(kBlock, acts.f32.n_cols - b * kBlock);
    int32_t sum;
    acts.scale[row * acts.block_stride + b] =
        quantize_block(acts.f32.row(row) + b * kBlock, n, acts.q + row * acts.q_stride + b * kBlock, sum);
    acts.sum[row * acts.block_stride + b] = sum;
  }
};

// Where a lane has the keys and values of one layer.
struct KvPlace {
  KvLayout layout;
  int64_t layer = 0;  // its place in the lane's blocks
  HS_DEVICE size_t row_bytes() const {
    if (layout.dtype == DType::kQ8_0) return static_cast<size_t>(layout.head_dim / kBlock * 34);
    return static_cast<size_t>(layout.head_dim) * (layout.dtype == DType::kF32 ? 4 : 2);
  }
  HS_DEVICE std::byte* row(std::byte* const* blocks, int64_t position, int64_t head, bool is_value) const {
    const int64_t n = KvLayout::kBlockPositions;
    const int64_t page = (layer * 2 + (is_value ? 1 : 0)) * layout.n_head_kv + head;
    return blocks[position / n] + static_cast<size_t>(page * n + position % n) * row_bytes();
  }
};

// Keys and values of a row to its position. One thread stores a block of 32 elements, or what is left of a head.
struct StoreKvRows : OneRound {
  StepView step;
  KvPlace place;
  Rows k, v;
  HS_DEVICE int64_t n_pieces() const { return div_up(place.layout.head_dim, kBlock); }
  HS_DEVICE int64_t n_all() const { return 2 * place.layout.n_head_kv * n_pieces(); }
  HS_DEVICE int64_t n_tiles() const { return div_up(n_all(), kThreads); }
  HS_DEVICE int64_t n_items() const { return step.n_rows(k.rows) * n_tiles(); }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t row = item / n_tiles(), at = item % n_tiles() * kThreads + thread;
    if (at >= n_all()) return;
    const int64_t piece = at % n_pieces(), head = at / n_pieces() % place.layout.n_head_kv;
    const bool is_value = at / n_pieces() / place.layout.n_head_kv == 1;
    const int64_t first = piece * kBlock, n = least(kBlock, place.layout.head_dim - first);
    const float* const from = (is_value ? v : k).row(row) + head * place.layout.head_dim + first;
    std::byte* const to = place.row(step.blocks(row), step.position(row), head, is_value);
    if (place.layout.dtype == DType::kF32) {
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<float*>(to)[first + i] = from[i];
    } else if (place.layout.dtype == DType::kF16) {
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<uint16_t*>(to)[first + i] = float_to_half(from[i]);
    } else {
      int8_t q[kBlock];
      int32_t sum;
      std::byte* const block = to + piece * 34;
      *reinterpret_cast<uint16_t*>(block) = float_to_half(quantize_block(from, n, q, sum));
      for (int64_t i = 0; i < kBlock; ++i) reinterpret_cast<int8_t*>(block)[2 + i] = q[i];
    }
  }
};

struct AddRows : Elementwise<AddRows> {
  StepView step;
  Rows a, b, out;
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return out.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const { out.row(row)[i] = a.row(row)[i] + b.row(row)[i]; }
};

struct SoftCapRows : Elementwise<SoftCapRows> {
  StepView step;
  float cap = 1;
  Rows x;
  HS_DEVICE int64_t n_rows() const { return step.n_rows(x.rows); }
  HS_DEVICE int64_t n_cols() const { return x.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const { x.row(row)[i] = soft_capped(x.row(row)[i], cap); }
};

struct ActivateRows : Elementwise<ActivateRows> {
  StepView step;
  ActivationRule activation;
  Rows gate, up, out;  // gate without data: none
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return out.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const {
    const bool has_gate = gate.data != nullptr;
    out.row(row)[i] = activated(activation, has_gate, has_gate ? gate.row(row)[i] : 0.0f, up.row(row)[i]);
  }
};

struct SelectOutputRows : Elementwise<SelectOutputRows> {
  StepView step;
  Rows in, out;
  HS_DEVICE int64_t n_rows() const { return step.head->n_output_rows; }
  HS_DEVICE int64_t n_cols() const { return out.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const {
    out.row(row)[i] = in.row(step.words(step.head->outputs)[row])[i];
  }
};

// Words of rows from or to memory of the host, by the lane's own loads and stores. Of a list what it holds.
struct CopyRows : OneRound {
  StepView step;
  Rows from, to;
  int64_t n_words = 0;
  unsigned long long* moved = nullptr;  // bytes
  HS_DEVICE int64_t n_tiles() const { return div_up(n_words, kTile); }
  HS_DEVICE int64_t n_items() const { return step.n_rows(to.rows) * n_tiles(); }
  HS_DEVICE void pass(int, int64_t item, int64_t, int thread, NoShared&) const {
    const int64_t row = item / n_tiles(), first = item % n_tiles() * kTile;
    const int64_t n = from.kind == BufferKind::kUnits ? 1 + list_of(from, row).n : n_words;
    const int32_t* const source = reinterpret_cast<const int32_t*>(from.row(row));
    int32_t* const target = reinterpret_cast<int32_t*>(to.row(row));
    for (int64_t i = first + thread; i < least(first + kTile, n); i += kThreads) target[i] = source[i];
    if (first == 0 && thread == 0) count(moved, static_cast<unsigned long long>(n) * 4);
  }
};

// Values of a sum, or of two merged.
struct MergeSumRows : Elementwise<MergeSumRows> {
  StepView step;
  Rows a, b, out;  // b without data: none
  const float* bias = nullptr;
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return out.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t i) const {
    const int64_t sum = b.data != nullptr ? merged(a.sums(row)[i], b.sums(row)[i]) : a.sums(row)[i];
    out.row(row)[i] = bias != nullptr ? sum_value(sum) + bias[i] : sum_value(sum);
  }
};

struct JoinUnitRows : Elementwise<JoinUnitRows> {
  StepView step;
  int64_t n_hot = 0;
  Rows hot, cold, out;
  const int32_t* unit_of_slot = nullptr;  // null: slots are units
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return out.n_cols; }
  HS_DEVICE void element(int64_t row, int64_t slot) const {
    const int64_t unit = unit_of_slot != nullptr ? unit_of_slot[slot] : slot;
    out.row(row)[unit] = slot < n_hot ? hot.row(row)[slot] : cold.row(row)[slot - n_hot];
  }
};

// Zeros the columns of a row.
struct ClearRows : Elementwise<ClearRows> {
  StepView step;
  Rows out;
  int64_t n = 0;
  HS_DEVICE int64_t n_rows() const { return step.n_rows(out.rows); }
  HS_DEVICE int64_t n_cols() const { return n; }
  HS_DEVICE void element(int64_t row, int64_t i) const { out.row(row)[i] = 0.0f; }
};

// Tells the lane that waits for the flag that all before is done. What earlier kernels wrote is visible to the host
// once they have ended; the fence is for the order of this store after it. A flag that a failure has raised is left
// alone, but for the instant between the load and the store, and nobody waits for the flag then.
struct SignalFlag : OneRound {
  StepView step;
  uint32_t* word = nullptr;  // pinned
  HS_DEVICE int64_t n_items() const { return 1; }
  HS_DEVICE void pass(int, int64_t, int64_t, int thread, NoShared&) const {
    if (thread != 0) return;
    const uint32_t number = step.head->number;
#if defined(__CUDA_ARCH__)
    __threadfence_system();
    volatile uint32_t* const at = word;
    if (*at < number) *at = number;
#else
    uint32_t was = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (was < number &&
           !__atomic_compare_exchange_n(word, &was, number, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    }
#endif
  }
};

// Of the host's threads: lets another one have the core.
void yield_core();

// Waits until another lane has signalled the flag in this step, or a failure has raised it. The host always does
// either (core/handoff.h), so there is no other way out.
struct WaitFlag : OneRound {
  StepView step;
  const uint32_t* word = nullptr;  // pinned
  HS_DEVICE int64_t n_items() const { return 1; }
  HS_DEVICE void pass(int, int64_t, int64_t, int thread, NoShared&) const {
    if (thread != 0) return;
#if defined(__CUDA_ARCH__)
    const volatile uint32_t* const at = word;
    while (*at < step.head->number) __nanosleep(100);
    __threadfence_system();
#else
    for (int i = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) < step.head->number; ++i)
      if (i > 1000) yield_core();
#endif
  }
};

}  // namespace hotset::cuda
