// The loops of a block gemm with few activations, shared by the vector instruction sets. Private to cpu/block_*.cpp.
//
// For few activations packing rows into panels (cpu/block_gemm.h) costs more than multiplying them. Here rows are read
// one after the other, each once and in order: a chunk of a row, one block for each 32-bit lane of a vector, is turned
// in registers so that vector g holds elements 4 g .. 4 g + 3 of all blocks, and is multiplied with every activation
// before the next chunk. Activations are turned the same way once per call. A lane sums one block, and a chunk's lanes
// are canonical lanes, so nothing is summed across lanes before the end of the row. Which lane takes which block of the
// chunk is up to the format, as it suits its bytes; activations follow, and the lane tree undoes it.
//
//   scratch: records (n_chunks, n_acts), one per chunk and activation; less than the panels and tiles of BlockGemm
#pragma once

#include "cpu/block_gemm.h"

namespace hotset::cpu {
namespace {

// For what must not be called from a loop that keeps sums in registers, because a call saves them all: gcc 12 calls the
// larger ones, at half the speed (Q4_K, 2 activations).
#define HS_INLINE __attribute__((always_inline))

// The most activations that this serves.
constexpr int64_t kMaxFewActs = 8;

// The most bytes of records with which this is the faster way: every row goes through all of them, and each row through
// the same L1 cache. Measured on Zen 5 (48 KiB): beyond, panels win, because they read activations once for 32 rows.
template <class Format>
constexpr int64_t kMaxRecordBytes = Format::kType == kWeightQ8_0 ? 36864 : 45056;

// A chunk of one activation.
template <class Format, int kWidth>
struct alignas(4 * kWidth) ActChunk {
  int8_t q[8][4 * kWidth];
  float scale[kWidth];
  union {
    int32_t start[Format::kType == kWeightQ6_K ? 2 : 1][kWidth];  // what integer sums of blocks, or halves, start from
    float scaled_sum[kWidth];  // Q4_K, Q5_K: scale * sum(q), which the minimum multiplies
  };
};

// Isa gives
//   Float, the vector of float; kWidth, its lanes and the blocks of a chunk: 16 or 8;
//   Chunk<Format>, weights of a chunk with its scales; unpack(Format, bytes, chunk);
//   pack(Format, q, scale, sum, to): turns a chunk of an activation;
//   add(Format, chunk, act, acc): the lanes of acc take in the products;
//   reduce(Format, accs): the lane tree of 16 / kWidth accumulators.
template <class Isa, class Format>
struct FewGemm {
  using Float = typename Isa::Float;
  using Record = ActChunk<Format, Isa::kWidth>;

  static constexpr int64_t kWidth = Isa::kWidth;
  static constexpr int64_t kAccs = kLanes / kWidth;
  static constexpr int64_t kChunkBytes = kWidth * kBlock / row_multiple(Format::kType) * Format::kBytes;

  // Whether this is the faster way: from 2 to `most` activations, whose records stay in the L1 cache.
  static bool serves(const GemmArgs& args, int64_t most) {
    const int64_t n_bytes = chunks_of(args) * args.n_acts * static_cast<int64_t>(sizeof(Record));
    return args.n_acts >= 2 && args.n_acts <= most && n_bytes <= kMaxRecordBytes<Format>;
  }

  // 2 to kMaxFewActs activations.
  static void run(const GemmArgs& args) {
    const int64_t n_blocks = args.w.n / kBlock, n_chunks = chunks_of(args);
    Record* const records = reinterpret_cast<Record*>(args.scratch);
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk)
      for (int64_t a = 0; a < args.n_acts; ++a)
        pack(args.acts[a], chunk * kWidth, n_blocks, records + chunk * args.n_acts + a);
    rows_for<2>(args.n_acts)(args, records);
  }

 private:
  static int64_t chunks_of(const GemmArgs& args) { return (args.w.n / kBlock + kWidth - 1) / kWidth; }

  using RowsFn = void (*)(const GemmArgs& args, const Record* records);

  template <int N>
  static RowsFn rows_for(int64_t n_acts) {
    if constexpr (N < kMaxFewActs) {
      if (n_acts > N) return rows_for<N + 1>(n_acts);
    }
    return &multiply_rows<N>;
  }

  // N activations: their sums stay in registers, so N is fixed.
  template <int N>
  static void multiply_rows(const GemmArgs& args, const Record* records) {
    const int64_t n_whole = args.w.n / kBlock / kWidth, n_chunks = chunks_of(args);
    const int64_t row_bytes = args.w.n / row_multiple(Format::kType) * Format::kBytes, ahead = rows_ahead(row_bytes);
    const int64_t last_bytes = row_bytes - n_whole * kChunkBytes;
    alignas(64) std::byte last[kChunkBytes] = {};  // what a chunk lacks at the end of the row counts as zero
    for (int64_t r = 0; r < args.n_rows; ++r) {
      const std::byte* const row = row_at(args.w, args.first_row + r);
      const int64_t next = r + ahead < args.n_rows ? r + ahead : args.n_rows - 1;
      const std::byte* const coming = row_at(args.w, args.first_row + next);
      Float sums[kAccs][N] = {};
      for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
        const std::byte* weights = row + chunk * kChunkBytes;
        prefetch(coming + chunk * kChunkBytes, kChunkBytes);
        if (chunk == n_whole) {
          std::memcpy(last, weights, static_cast<size_t>(last_bytes));
          weights = last;
        }
        typename Isa::template Chunk<Format> w;
        Isa::unpack(Format{}, weights, w);
        for (int a = 0; a < N; ++a)
          sums[chunk % kAccs][a] = Isa::add(Format{}, w, records[chunk * N + a], sums[chunk % kAccs][a]);
      }
      for (int a = 0; a < N; ++a) {
        Float lanes[kAccs];
        for (int64_t i = 0; i < kAccs; ++i) lanes[i] = sums[i][a];
        args.out[a * args.out_stride + r] = Isa::reduce(Format{}, lanes);
      }
    }
  }

  static void pack(const ActivationRow& act, int64_t block, int64_t n_blocks, Record* to) {
    const int64_t n = n_blocks - block;
    if (n >= kWidth) return Isa::pack(Format{}, act.q + block * kBlock, act.scale + block, act.sum + block, *to);
    int8_t q[kWidth * kBlock] = {};
    float scale[kWidth] = {};
    int32_t sum[kWidth] = {};
    std::memcpy(q, act.q + block * kBlock, static_cast<size_t>(n * kBlock));
    std::memcpy(scale, act.scale + block, static_cast<size_t>(n) * sizeof(float));
    std::memcpy(sum, act.sum + block, static_cast<size_t>(n) * sizeof(int32_t));
    Isa::pack(Format{}, q, scale, sum, *to);
  }
};

}  // namespace
}  // namespace hotset::cpu
