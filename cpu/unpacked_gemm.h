// The gemm of the types of core/unpacked_block.h, for vectors of any length. Private to cpu/unpacked_*.
//
// Rows are unpacked to the scratch, kRows at a time, as chunks of as many blocks as a vector has lanes, turned so that
// dword l of vector g holds elements 4 g .. 4 g + 3 of block l; activations are turned the same way, once per call. A
// lane then sums one block, and a chunk's lanes are canonical lanes: nothing is summed across lanes before the end of
// the row. What multiplies knows of the type only whether it has a minimum, so that there are few instances of it.
//
//   scratch: rows (kRows, n_chunks) of Isa::Weights | activations (n_chunks, up to kMaxActs) of Isa::Activations
#pragma once

#include "cpu/unpacked_format.h"

namespace hotset::cpu {
namespace {

// Isa gives
//   kWidth, lanes of a vector; Weights and Activations, a chunk of either, with its scales;
//   unpack_weights<Format>(bytes, chunk) and unpack_activation(q, scale, chunk);
//   dots<kMinimum, N>(weights, activations, n_chunks, out, out_stride): one row and N activations, n_chunks apart.
template <class Isa>
struct UnpackedGemm {
  using Weights = typename Isa::Weights;
  using Activations = typename Isa::Activations;

  static constexpr int64_t kWidth = Isa::kWidth, kRows = 4, kMaxActs = 64, kTile = 4;
  static constexpr size_t kChunkBytes = kRows * sizeof(Weights) + kMaxActs * sizeof(Activations);

  template <class Format>
  static void run(const GemmArgs& args) {
    run(args, &unpack_row<Format>, kDots<Format::kHasMinimum>);
  }

 private:
  // A row of n blocks as chunks.
  using UnpackRow = void (*)(const std::byte* row, int64_t n_blocks, Weights* to);

  using Dots = void (*)(const Weights*, const Activations*, int64_t n_chunks, float* out, int64_t out_stride);

  // By the number of activations - 1.
  template <bool kMinimum>
  static constexpr Dots kDots[kTile] = {&Isa::template dots<kMinimum, 1>, &Isa::template dots<kMinimum, 2>,
                                        &Isa::template dots<kMinimum, 3>, &Isa::template dots<kMinimum, 4>};

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  static void run(const GemmArgs& args, UnpackRow unpack, const Dots* dots) {
    const int64_t n_blocks = args.w.n / kBlock, n_chunks = (n_blocks + kWidth - 1) / kWidth;
    Weights* const rows = reinterpret_cast<Weights*>(args.scratch);
    Activations* const acts = reinterpret_cast<Activations*>(rows + kRows * n_chunks);
    for (int64_t begin = 0; begin < args.n_acts; begin += kMaxActs) {
      const int64_t n_acts = least(kMaxActs, args.n_acts - begin);
      for (int64_t a = 0; a < n_acts; ++a) unpack_whole(args.acts[begin + a], n_blocks, acts + a * n_chunks);
      for (int64_t r = 0; r < args.n_rows; r += kRows) {
        const int64_t n_rows = least(kRows, args.n_rows - r);
        for (int64_t i = 0; i < n_rows; ++i)
          unpack(row_at(args.w, args.first_row + r + i), n_blocks, rows + i * n_chunks);
        float* const out = args.out + begin * args.out_stride + r;
        for (int64_t a = 0; a < n_acts; a += kTile)
          for (int64_t i = 0; i < n_rows; ++i)
            dots[least(kTile, n_acts - a) - 1](rows + i * n_chunks, acts + a * n_chunks, n_chunks,
                                               out + a * args.out_stride + i, args.out_stride);
      }
    }
  }

  template <class Format>
  static void unpack_row(const std::byte* row, int64_t n_blocks, Weights* to) {
    constexpr int64_t kBytes = kWidth / Format::kBlocks * Format::kBytes;
    for (; n_blocks >= kWidth; n_blocks -= kWidth, row += kBytes) Isa::template unpack_weights<Format>(row, *to++);
    if (n_blocks == 0) return;
    alignas(64) std::byte last[kBytes] = {};
    std::memcpy(last, row, static_cast<size_t>(n_blocks / Format::kBlocks * Format::kBytes));
    Isa::template unpack_weights<Format>(last, *to);
  }

  static void unpack_whole(const ActivationRow& a, int64_t n_blocks, Activations* to) {
    int64_t b = 0;
    for (; b + kWidth <= n_blocks; b += kWidth) Isa::unpack_activation(a.q + b * kBlock, a.scale + b, *to++);
    if (b == n_blocks) return;
    int8_t q[kWidth * kBlock] = {};
    float scale[kWidth];
    for (float& each : scale) each = kMissing;
    std::memcpy(q, a.q + b * kBlock, static_cast<size_t>((n_blocks - b) * kBlock));
    std::memcpy(scale, a.scale + b, static_cast<size_t>(n_blocks - b) * sizeof(float));
    Isa::unpack_activation(q, scale, *to);
  }
};

}  // namespace
}  // namespace hotset::cpu
