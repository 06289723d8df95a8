// Rows and activations of a plane_dots call in the order that suits the caches, around the kernel of one row. Private to
// cpu/plane_*.cpp.
#pragma once

#include "core/bit_planes.h"
#include "cpu/block_format.h"

namespace hotset::cpu {
namespace {

// Activations that a row meets while its codes are unpacked, and those that stay in the first cache while the rows of a
// call pass by: 8 of 4096 columns take 36 KiB.
constexpr int kPlaneActs = 4;
constexpr int64_t kPlaneTile = 8;

// Isa::dot<kBits, kActs>(row, n_blocks, acts, out, out_stride): the dots of one row with kActs activations, n_blocks > 0.
template <class Isa, int kBits>
void plane_dots(const PlaneDotArgs& args) {
  const int64_t n_blocks = (args.w.n + kBlock - 1) / kBlock, n_bytes = plane_row_bytes(kBits, args.w.n);
  const int64_t ahead = rows_ahead(n_bytes);
  for (int64_t tile = 0; tile < args.n_acts; tile += kPlaneTile) {
    const int64_t end = tile + kPlaneTile < args.n_acts ? tile + kPlaneTile : args.n_acts;
    for (int64_t r = 0; r < args.n_rows; ++r) {
      const std::byte* row = row_at(args.w, args.first_row + r);
      if (r + ahead < args.n_rows) prefetch(row + static_cast<size_t>(ahead) * args.w.stride, n_bytes);
      int64_t a = tile;
      for (; a + kPlaneActs <= end; a += kPlaneActs)
        Isa::template dot<kBits, kPlaneActs>(row, n_blocks, args.acts + a, args.out + a * args.out_stride + r,
                                             args.out_stride);
      for (; a < end; ++a)
        Isa::template dot<kBits, 1>(row, n_blocks, args.acts + a, args.out + a * args.out_stride + r, 0);
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
