// Rows and activations of a plane_dots call in the order that suits the caches, around the kernel of one row. Private to
// cpu/plane_*.cpp.
#pragma once

#include "core/bit_planes.h"
#include "cpu/block_format.h"

namespace hotset::cpu {
namespace {

// Activations that a row meets while its codes are unpacked, or rows that one activation meets at a time: sums that do not
// wait for each other. And activations that stay in the first cache while the rows of a call pass by: 8 of 4096 columns
// take 36 KiB.
constexpr int kPlaneActs = 4;
constexpr int kPlaneRows = 4;
constexpr int64_t kPlaneTile = 8;
// How far ahead one activation's rows are asked for: 8 KiB for 4096 columns of 2 bits. Measured on a 2-core Zen 5 VM with
// 2 threads: 51 GB/s; one tile ahead 49, four 48, prefetched into all caches 47, two rows at a time 46, one 39.
constexpr size_t kTilesAhead = 2;

// Asks for lines that are read once: they need not displace what lies in the larger caches. Never faults; returns the end.
[[gnu::always_inline]] inline const std::byte* prefetch_once(const std::byte* from, int64_t n_bytes) {
  for (int64_t at = 0; at < n_bytes; at += 64) __builtin_prefetch(from + at, 0, 0);
  return from + n_bytes;
}

// Rows and activations of one kernel: out[r + a * out_stride].
struct PlaneTile {
  const std::byte* rows;
  size_t stride;
  int64_t n_blocks;  // > 0
  const ActivationRow* acts;
  float* out;
  int64_t out_stride;
  const std::byte* coming;  // as many rows, one after the other, that will be read soon; with several rows only
};

// Isa::dot<kBits, kRows, kActs>(tile): the dots of kRows rows with kActs activations.
template <class Isa, int kBits>
void plane_dots(const PlaneDotArgs& args) {
  const int64_t n_blocks = (args.w.n + kBlock - 1) / kBlock;
  const auto tile_at = [&](int64_t row, int64_t act) {
    return PlaneTile{row_at(args.w, args.first_row + row), args.w.stride,   n_blocks, args.acts + act,
                     args.out + act * args.out_stride + row, args.out_stride, nullptr};
  };
  if (args.n_acts == 1) {
    int64_t row = 0;
    for (; row + kPlaneRows <= args.n_rows; row += kPlaneRows) {
      PlaneTile tile = tile_at(row, 0);
      tile.coming = tile.rows + kTilesAhead * kPlaneRows * args.w.stride;
      Isa::template dot<kBits, kPlaneRows, 1>(tile);
    }
    for (; row < args.n_rows; ++row) Isa::template dot<kBits, 1, 1>(tile_at(row, 0));
    return;
  }
  for (int64_t begin = 0; begin < args.n_acts; begin += kPlaneTile) {
    const int64_t end = begin + kPlaneTile < args.n_acts ? begin + kPlaneTile : args.n_acts;
    for (int64_t row = 0; row < args.n_rows; ++row) {
      int64_t act = begin;
      for (; act + kPlaneActs <= end; act += kPlaneActs) Isa::template dot<kBits, 1, kPlaneActs>(tile_at(row, act));
      for (; act < end; ++act) Isa::template dot<kBits, 1, 1>(tile_at(row, act));
    }
  }
}

template <class Isa>
void fill_plane_dots(Kernels& table) {
  table.plane_dots[0] = plane_dots<Isa, 1>;
  table.plane_dots[1] = plane_dots<Isa, 2>;
  table.plane_dots[2] = plane_dots<Isa, 3>;
}

}  // namespace
}  // namespace hotset::cpu
