// Block kernels in plain C++ for any CPU: the loops the compiler can vectorise for the baseline instruction set.
#include "core/half.h"
#include "cpu/block_format.h"
#include "cpu/canonical.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// Nearest even integer of x, |x| <= 127: adding 1.5 * 2^23 leaves it in the low mantissa bits.
inline int32_t round_even(float x) { return static_cast<int32_t>(float_bits(x + 12582912.0f)) - 0x4b400000; }

void quantize_activation(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
  for (int64_t block = 0; block < n / kBlock; ++block) {
    const float* from = x + block * kBlock;
    int8_t* to = q + block * kBlock;
    int32_t max_bits = 0;  // as integers magnitudes order like floats, and infinity and NaN come last
    for (int64_t i = 0; i < kBlock; ++i) {
      const int32_t bits = static_cast<int32_t>(float_bits(from[i]) & 0x7fffffffu);
      max_bits = bits > max_bits ? bits : max_bits;
    }
    const float max = bits_float(static_cast<uint32_t>(max_bits));
    const bool finite = max_bits < 0x7f800000;
    if (!finite || max < kLeastMax) {
      std::memset(to, 0, kBlock);
      scale[block] = finite ? 0.0f : __builtin_nanf("");
      sum[block] = 0;
      continue;
    }
    const float inverse = 127.0f / max;
    int32_t total = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      const int32_t value = round_even(from[i] * inverse);
      to[i] = static_cast<int8_t>(value);
      total += value;
    }
    scale[block] = max / 127.0f;
    sum[block] = total;
  }
}

// Exact sum of 32 products, written so that compilers find the multiply-add of 16-bit pairs.
inline int32_t sum32(const int8_t* w, const int8_t* q) {
  int16_t a[kBlock], b[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) a[i] = w[i];
  for (int64_t i = 0; i < kBlock; ++i) b[i] = q[i];
  int32_t sum = 0;
  for (int64_t i = 0; i < kBlock; ++i) sum += a[i] * b[i];
  return sum;
}

// The integers of one block, after its scale.
inline void unpack(Q8, const std::byte* block, int8_t* to) { std::memcpy(to, block + 2, kBlock); }

inline void unpack(Q4, const std::byte* block, int8_t* to) {
  uint8_t pair[kBlock / 2];
  std::memcpy(pair, block + 2, sizeof pair);
  for (int i = 0; i < kBlock / 2; ++i) to[i] = static_cast<int8_t>((pair[i] & 15) - 8);
  for (int i = 0; i < kBlock / 2; ++i) to[i + kBlock / 2] = static_cast<int8_t>((pair[i] >> 4) - 8);
}

template <class Format>
void dot_rows(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows, const ActivationRow& a,
              float* out) {
  const int64_t n_blocks = w.n / kBlock;
  for (int64_t r = 0; r < n_rows; ++r) {
    const std::byte* block = row_at(w, rows ? rows[r] : first_row + r);
    float lane[kLanes] = {};
    for (int64_t b = 0; b < n_blocks; ++b, block += Format::kBytes) {
      int8_t q[kBlock];
      unpack(Format{}, block, q);
      const float d = f16_to_f32(load_u16(block)) * a.scale[b];
      lane[b % kLanes] = fma1(d, static_cast<float>(sum32(q, a.q + b * kBlock)), lane[b % kLanes]);
    }
    out[r] = reduce_lanes(lane);
  }
}

// Scratch: one unpacked row, scales first.
size_t gemm_scratch_bytes(int64_t n) { return static_cast<size_t>(n / kBlock) * (sizeof(float) + kBlock); }

// Unpacks each row once, then dots it with every activation.
template <class Format>
void gemm(const GemmArgs& args) {
  const int64_t n_blocks = args.w.n / kBlock;
  float* scale = reinterpret_cast<float*>(args.scratch);
  int8_t* q = reinterpret_cast<int8_t*>(scale + n_blocks);
  for (int64_t r = 0; r < args.n_rows; ++r) {
    const std::byte* block = row_at(args.w, args.first_row + r);
    for (int64_t b = 0; b < n_blocks; ++b, block += Format::kBytes) {
      scale[b] = f16_to_f32(load_u16(block));
      unpack(Format{}, block, q + b * kBlock);
    }
    for (int64_t i = 0; i < args.n_acts; ++i) {
      const ActivationRow& a = args.acts[i];
      float lane[kLanes] = {};
      for (int64_t b = 0; b < n_blocks; ++b) {
        const float sum = static_cast<float>(sum32(q + b * kBlock, a.q + b * kBlock));
        lane[b % kLanes] = fma1(scale[b] * a.scale[b], sum, lane[b % kLanes]);
      }
      args.out[i * args.out_stride + r] = reduce_lanes(lane);
    }
  }
}

}  // namespace

void fill_block_generic(Kernels& table) {
  table.quantize_activation = quantize_activation;
  table.dot_rows[kWeightQ8_0] = dot_rows<Q8>;
  table.dot_rows[kWeightQ4_0] = dot_rows<Q4>;
  table.gemm[kWeightQ8_0] = gemm<Q8>;
  table.gemm[kWeightQ4_0] = gemm<Q4>;
  table.gemm_scratch_bytes = gemm_scratch_bytes;
}

}  // namespace hotset::cpu
