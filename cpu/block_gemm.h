// The loops of a block gemm, shared by the vector instruction sets. Private to cpu/block_*.cpp.
//
// Activations are packed once per call into tiles of kTile, one record per quantisation block. Weights are packed on
// the fly: kRows rows by kLanes blocks make a panel that stays in L1, and every tile is multiplied with it before the
// next panel. A panel has one block of each canonical lane; the running lane sums live in memory between panels:
//
//   scratch: panel (kLanes records) | lane sums (n_tiles x kLanes x kTile x kRows floats) | tiles (n_tiles x n_blocks)
//
// Lane sums and tiles stay in L2. Weights are read from memory once per kMaxActs activations. (A panel of whole rows in
// lane order, float sums kept in registers, was at most 5 % faster on Zen 5.)
#pragma once

#include "cpu/block_format.h"

namespace hotset::cpu {
namespace {

// One quantisation block of kTile activations. `start` is what the integer sum starts from: -kOffset * sum(q), which
// takes back the offset that made the weights unsigned.
template <int kTile, int32_t kOffset>
struct ActRecord {
  int8_t q[kTile][kBlock];
  int32_t start[kTile];
  float scale[kTile];

  void set(int a, const ActivationRow& act, int64_t block) {
    std::memcpy(q[a], act.q + block * kBlock, kBlock);
    start[a] = -kOffset * act.sum[block];
    scale[a] = act.scale[block];
  }
};

// Writes n_acts activations, no more than a record has places for, as one tile. Places left over are never read.
template <class Record>
inline void pack_activations(const ActivationRow* acts, int n_acts, int64_t n_blocks, Record* tile) {
  for (int a = 0; a < n_acts; ++a) {
    const ActivationRow act = acts[a];
    for (int64_t block = 0; block < n_blocks; ++block) tile[block].set(a, act, block);
  }
}

// Weights still to come, fetched into L2 a step at a time while the current rows are multiplied: with few activations
// memory would otherwise idle during the arithmetic.
struct Coming {
  const std::byte* at;
  const std::byte* end;
  int64_t step;  // bytes, a multiple of 64

  void fetch_step() {
    if (at >= end) return;
    for (int64_t i = 0; i < step; i += 64) __builtin_prefetch(at + i, 0, 2);
    at += step;
  }
};

// Isa gives
//   Float, the vector of float; kRows, two vectors of rows; kTile; kMaxActs, a multiple of kTile;
//   kRecordBytes of a panel, a multiple of sizeof(Float); Record<Format>, the tile's; kMaxActRecordBytes of those;
//   pack_block<Format>(rows, block, record): packs kPackBlocks blocks, of which a row has whole groups;
//   multiply<Format, N>(record, act, sums): adds a block's products with N activations to sums[2 a], sums[2 a + 1].
template <class Isa>
struct BlockGemm {
  using Float = typename Isa::Float;
  template <class Format>
  using Record = typename Isa::template Record<Format>;
  template <class Format>
  using MultiplyFn = void (*)(const std::byte* panel, int64_t n_blocks, const Record<Format>* tile, Float* sums,
                              Coming&);

  static constexpr int64_t kPanelBytes = kLanes * Isa::kRecordBytes;
  static constexpr int64_t kSums = 2 * Isa::kTile;  // vectors of one lane of one tile
  static constexpr int64_t kMaxTiles = Isa::kMaxActs / Isa::kTile;

  static constexpr size_t scratch_bytes(int64_t n) {
    const size_t n_blocks = static_cast<size_t>(n / kBlock);
    return kPanelBytes + kMaxTiles * (kLanes * kSums * sizeof(Float) + n_blocks * Isa::kMaxActRecordBytes);
  }

  template <class Format>
  static void run(const GemmArgs& args) {
    for (int64_t begin = 0; begin < args.n_acts; begin += Isa::kMaxActs) {
      GemmArgs part = args;
      part.acts += begin;
      part.n_acts = least(Isa::kMaxActs, args.n_acts - begin);
      part.out += begin * args.out_stride;
      run_part<Format>(part);
    }
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // At most kMaxActs activations.
  template <class Format>
  static void run_part(const GemmArgs& args) {
    const int64_t n_blocks = args.w.n / kBlock;
    Float* sums = reinterpret_cast<Float*>(args.scratch + kPanelBytes);
    static_assert(sizeof(Record<Format>) <= Isa::kMaxActRecordBytes);
    Record<Format>* tiles = reinterpret_cast<Record<Format>*>(sums + kMaxTiles * kLanes * kSums);
    for (int64_t a = 0; a < args.n_acts; a += Isa::kTile)
      pack_activations(args.acts + a, static_cast<int>(least(Isa::kTile, args.n_acts - a)), n_blocks,
                       tiles + a / Isa::kTile * n_blocks);
    for (int64_t row = 0; row < args.n_rows; row += Isa::kRows) {
      multiply_rows<Format>(args, row, tiles, sums);
      for (int64_t a = 0; a < args.n_acts; ++a)
        store(sums + a / Isa::kTile * kLanes * kSums + a % Isa::kTile * 2, least(Isa::kRows, args.n_rows - row),
              args.out + a * args.out_stride + row);
    }
  }

  // Lane sums of the rows from `row` on with every activation.
  template <class Format>
  static void multiply_rows(const GemmArgs& args, int64_t row, const Record<Format>* tiles, Float* sums) {
    const int64_t n_blocks = args.w.n / kBlock, n_tiles = (args.n_acts + Isa::kTile - 1) / Isa::kTile;
    const int64_t n_rows = least(Isa::kRows, args.n_rows - row);
    const std::byte* rows[Isa::kRows];
    for (int64_t i = 0; i < Isa::kRows; ++i) rows[i] = row_at(args.w, args.first_row + row + least(i, n_rows - 1));
    const int64_t n_last = args.n_acts - (n_tiles - 1) * Isa::kTile;
    const MultiplyFn<Format> multiply_whole = &multiply_panel<Format, Isa::kTile>;
    const MultiplyFn<Format> multiply_last = multiply_for<Format, 1>(static_cast<int>(n_last));
    Coming coming = after(args, row + n_rows, n_blocks * (1 + least(4, n_tiles)));
    for (int64_t i = 0; i < n_tiles * kLanes * kSums; ++i) sums[i] = Float{};
    for (int64_t block = 0; block < n_blocks; block += kLanes) {
      const int64_t n = least(kLanes, n_blocks - block);
      for (int64_t i = 0; i < n; i += Isa::kPackBlocks) {
        Isa::template pack_block<Format>(rows, block + i, args.scratch + i * Isa::kRecordBytes);
        for (int64_t j = 0; j < Isa::kPackBlocks; ++j) coming.fetch_step();
      }
      for (int64_t t = 0; t < n_tiles; ++t)
        (t + 1 < n_tiles ? multiply_whole : multiply_last)(args.scratch, n, tiles + t * n_blocks + block,
                                                           sums + t * kLanes * kSums, coming);
    }
  }

  // The next rows, spread over n_steps.
  static Coming after(const GemmArgs& args, int64_t row, int64_t n_steps) {
    const std::byte* const begin = row_at(args.w, args.first_row + row);
    const std::byte* const end = row_at(args.w, args.first_row + least(args.n_rows, row + Isa::kRows));
    return {begin, end, ((end - begin) / n_steps + 63) / 64 * 64};
  }

  template <class Format, int N>
  static void multiply_panel(const std::byte* panel, int64_t n_blocks, const Record<Format>* tile, Float* sums,
                             Coming& coming) {
    for (int64_t i = 0; i < n_blocks; ++i) {
      Isa::template multiply<Format, N>(panel + i * Isa::kRecordBytes, tile[i], sums + i * kSums);
      coming.fetch_step();
    }
  }

  template <class Format, int N>
  static MultiplyFn<Format> multiply_for(int n_acts) {
    if constexpr (N < Isa::kTile) {
      if (n_acts > N) return multiply_for<Format, N + 1>(n_acts);
    }
    return &multiply_panel<Format, N>;
  }

  // The lane tree of one activation, its first n_rows results to `out`.
  static void store(const Float* sums, int64_t n_rows, float* out) {
    Float result[2];
    for (int half = 0; half < 2; ++half) {
      Float l[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) l[lane] = sums[lane * kSums + half];
      for (int64_t n = kLanes / 2; n > 0; n /= 2)
        for (int64_t j = 0; j < n; ++j) l[j] = l[j] + l[j + n];
      result[half] = l[0];
    }
    std::memcpy(out, result, sizeof(float) * static_cast<size_t>(n_rows));
  }
};

}  // namespace
}  // namespace hotset::cpu
