// Kernels of the types of core/unpacked_block.h in plain C++ for any CPU.
#include "core/quantize.h"
#include "cpu/canonical.h"
#include "cpu/kernels_fill.h"
#include "cpu/unpacked_format.h"

namespace hotset::cpu {
namespace {

// Adds block `b` of the row to its lane.
template <class Format>
inline void add_block(Format, const UnpackedBlock& block, const ActivationRow& a, int64_t b, float* lane) {
  const int8_t* q = a.q + b * kBlock;
  int32_t s[2] = {}, sum[2] = {};
  for (int64_t i = 0; i < kBlock; ++i) s[i / 16] += block.q[i] * q[i];
  float& to = lane[b % kLanes];
  to = fma1(block.d * a.scale[b], static_cast<float>(block.c[0] * s[0] + block.c[1] * s[1]), to);
  if constexpr (Format::kHasMinimum) {
    for (int64_t i = 0; i < kBlock; ++i) sum[i / 16] += q[i];
    to = fma1(-block.m, a.scale[b] * static_cast<float>(block.k[0] * sum[0] + block.k[1] * sum[1]), to);
  }
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const std::byte* const row = row_at(w, rows ? rows[r] : first_row + r);
    float lane[kLanes] = {};
    for (int64_t b = 0; b < w.n / kBlock; ++b) {
      UnpackedBlock block;
      unpack_block(Format{}, row, b, block);
      add_block(Format{}, block, a, b, lane);
    }
    out[r] = reduce_lanes(lane);
  }
}

// Unpacks each row once, to the scratch, then dots it with every activation.
template <class Format>
void gemm(const GemmArgs& args) {
  const int64_t n_blocks = args.w.n / kBlock;
  UnpackedBlock* const blocks = reinterpret_cast<UnpackedBlock*>(args.scratch);
  for (int64_t r = 0; r < args.n_rows; ++r) {
    const std::byte* const row = row_at(args.w, args.first_row + r);
    for (int64_t b = 0; b < n_blocks; ++b) unpack_block(Format{}, row, b, blocks[b]);
    for (int64_t i = 0; i < args.n_acts; ++i) {
      float lane[kLanes] = {};
      for (int64_t b = 0; b < n_blocks; ++b) add_block(Format{}, blocks[b], args.acts[i], b, lane);
      args.out[i * args.out_stride + r] = reduce_lanes(lane);
    }
  }
}

// Only rows of embeddings are decoded: the plain way is fast enough.
template <DType type>
void decode(const std::byte* row, int64_t n, float* out) {
  dequantize_row(type, row, n, out);
}

}  // namespace

void fill_unpacked_generic(Kernels& table) {
  for_unpacked_formats([&]<WeightType type, class Format>() {
    table.dot_rows[type] = dot_rows<Format>;
    table.gemm[type] = gemm<Format>;
  });
  table.dequantize_row[kWeightQ2_K] = decode<DType::kQ2_K>;
  table.dequantize_row[kWeightQ3_K] = decode<DType::kQ3_K>;
  table.dequantize_row[kWeightIQ4_XS] = decode<DType::kIQ4_XS>;
  table.dequantize_row[kWeightQ4_1] = decode<DType::kQ4_1>;
  table.dequantize_row[kWeightQ5_0] = decode<DType::kQ5_0>;
  table.dequantize_row[kWeightQ5_1] = decode<DType::kQ5_1>;
  table.dequantize_row[kWeightIQ4_NL] = decode<DType::kIQ4_NL>;
  table.dequantize_row[kWeightMXFP4] = decode<DType::kMXFP4>;
}

}  // namespace hotset::cpu
