// K-type block kernels in plain C++ for any CPU.
#include "core/half.h"
#include "cpu/block_k_format.h"
#include "cpu/canonical.h"
#include "cpu/k_scales.h"
#include "cpu/kernels_fill.h"
#include "cpu/unpacked_format.h"

namespace hotset::cpu {
namespace {

// What scales the integers of one block. Q4_K, Q5_K: d_s and d_m. Q6_K: d, and the int8 scales of the two halves.
struct BlockScale {
  float d;
  float d_m;
  int16_t c[2];
};

inline int byte_at(const std::byte* from, int64_t i) { return static_cast<int>(from[i]); }

inline void unpack_scales(const std::byte* super, BlockScale* out) {
  const float d = f16_to_f32(load_u16(super)), dmin = f16_to_f32(load_u16(super + 2));
  const Dwords packed = k_scale_bytes(super);
  uint8_t bytes[2 * kSuperBlocks];
  std::memcpy(bytes, &packed, sizeof bytes);
  for (int64_t b = 0; b < kSuperBlocks; ++b) {
    out[b].d = d * static_cast<float>(bytes[b]);
    out[b].d_m = dmin * static_cast<float>(bytes[kSuperBlocks + b]);
  }
}

inline void unpack_nibbles(const std::byte* from, int8_t* q) {
  for (int64_t j = 0; j < 4; ++j)
    for (int64_t i = 0; i < kBlock; ++i) {
      q[2 * j * kBlock + i] = static_cast<int8_t>(byte_at(from, j * kBlock + i) & 15);
      q[(2 * j + 1) * kBlock + i] = static_cast<int8_t>(byte_at(from, j * kBlock + i) >> 4);
    }
}

// The integers and scales of one super-block.
inline void unpack(Q4K, const std::byte* super, BlockScale* scale, int8_t* q) {
  unpack_scales(super, scale);
  unpack_nibbles(super + Q4K::kNibblesAt, q);
}

inline void unpack(Q5K, const std::byte* super, BlockScale* scale, int8_t* q) {
  unpack_scales(super, scale);
  unpack_nibbles(super + Q5K::kNibblesAt, q);
  for (int64_t b = 0; b < kSuperBlocks; ++b)
    for (int64_t i = 0; i < kBlock; ++i)
      q[b * kBlock + i] = static_cast<int8_t>(q[b * kBlock + i] | (byte_at(super, Q5K::kHighAt + i) >> b & 1) << 4);
}

inline void unpack(Q6K, const std::byte* super, BlockScale* scale, int8_t* q) {
  const float d = f16_to_f32(load_u16(super + Q6K::kDAt));
  for (int64_t b = 0; b < kSuperBlocks; ++b) {
    const int64_t half = b / 4, in_half = b % 4;
    const std::byte* low = super + 64 * half + kBlock * (in_half % 2);
    const std::byte* high = super + Q6K::kHighAt + kBlock * half;
    const int64_t shift_low = in_half / 2 * 4, shift_high = 2 * in_half;
    for (int64_t i = 0; i < kBlock; ++i) {
      const int value = (byte_at(low, i) >> shift_low & 15) | (byte_at(high, i) >> shift_high & 3) << 4;
      q[b * kBlock + i] = static_cast<int8_t>(value - Q6K::kOffset);
    }
    scale[b].d = d;
    for (int64_t i = 0; i < 2; ++i) scale[b].c[i] = static_cast<int8_t>(byte_at(super, Q6K::kScalesAt + 2 * b + i));
  }
}

// Exact sum of 16 products.
inline int32_t sum16(const int8_t* w, const int8_t* q) {
  int16_t a[16], b[16];
  for (int64_t i = 0; i < 16; ++i) a[i] = w[i];
  for (int64_t i = 0; i < 16; ++i) b[i] = q[i];
  int32_t sum = 0;
  for (int64_t i = 0; i < 16; ++i) sum += a[i] * b[i];
  return sum;
}

// Adds block `b` of the row, whose integers are w, to its lane.
template <class Format>
inline void add_block(Format, const BlockScale& scale, const int8_t* w, const ActivationRow& a, int64_t b,
                      float* lane) {
  const int8_t* q = a.q + b * kBlock;
  const int32_t s0 = sum16(w, q), s1 = sum16(w + 16, q + 16);
  float& to = lane[b % kLanes];
  if constexpr (Format::kType == kWeightQ6_K) {
    to = fma1(scale.d * a.scale[b], static_cast<float>(scale.c[0] * s0 + scale.c[1] * s1), to);
  } else {
    to = fma1(scale.d * a.scale[b], static_cast<float>(s0 + s1), to);
    to = fma1(-scale.d_m, a.scale[b] * static_cast<float>(a.sum[b]), to);
  }
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const int64_t n_blocks = w.n / kBlock, row_bytes = w.n / kSuperBlock * Format::kBytes;
  stream_rows(w, rows, first_row, n_rows, row_bytes, out, [&](const std::byte* super, const std::byte*) {
    float lane[kLanes] = {};
    for (int64_t b = 0; b < n_blocks; b += kSuperBlocks, super += Format::kBytes) {
      BlockScale scale[kSuperBlocks];
      int8_t q[kSuperBlock];
      unpack(Format{}, super, scale, q);
      for (int64_t i = 0; i < kSuperBlocks; ++i) add_block(Format{}, scale[i], q + i * kBlock, a, b + i, lane);
    }
    return reduce_lanes(lane);
  });
}

// Scratch: one unpacked row, scales first. UnpackedBlock is what the types of core/unpacked_block.h need.
size_t gemm_scratch_bytes(int64_t n) {
  static_assert(sizeof(UnpackedBlock) >= sizeof(BlockScale) + kBlock);
  return static_cast<size_t>(n / kBlock) * sizeof(UnpackedBlock);
}

// Unpacks each row once, then dots it with every activation.
template <class Format>
void gemm(const GemmArgs& args) {
  const int64_t n_blocks = args.w.n / kBlock;
  BlockScale* scale = reinterpret_cast<BlockScale*>(args.scratch);
  int8_t* q = reinterpret_cast<int8_t*>(scale + n_blocks);
  for (int64_t r = 0; r < args.n_rows; ++r) {
    const std::byte* super = row_at(args.w, args.first_row + r);
    for (int64_t b = 0; b < n_blocks; b += kSuperBlocks, super += Format::kBytes)
      unpack(Format{}, super, scale + b, q + b * kBlock);
    for (int64_t i = 0; i < args.n_acts; ++i) {
      float lane[kLanes] = {};
      for (int64_t b = 0; b < n_blocks; ++b) add_block(Format{}, scale[b], q + b * kBlock, args.acts[i], b, lane);
      args.out[i * args.out_stride + r] = reduce_lanes(lane);
    }
  }
}

template <class Format>
void fill(Kernels& table) {
  table.dot_rows[Format::kType] = dot_rows<Format>;
  table.gemm[Format::kType] = gemm<Format>;
}

}  // namespace

void fill_block_k_generic(Kernels& table) {
  fill<Q4K>(table);
  fill<Q5K>(table);
  fill<Q6K>(table);
  table.gemm_scratch_bytes = gemm_scratch_bytes;  // more than Q8_0 and Q4_0 need
}

}  // namespace hotset::cpu
