// The CPU's kernel table: raw pointers in, raw pointers out, one table per instruction set, chosen once at run time.
//
// Canonical arithmetic. Each output is computed by ONE sequence of IEEE operations that depends only on the
// operands: not on the instruction set, the thread count, how rows are grouped into calls, or whether a row is computed
// alone (decode) or with many others (prefill). Results are therefore equal bit for bit everywhere. The rules:
//  - `fma` is fused, one rounding (cpu/canonical.h emulates it exactly where there is no FMA). No other contraction.
//  - dot of floats: 16 lanes start at +0; element i does lane[i % 16] = fma(w[i], x[i], lane[i % 16]) in order of i;
//    then the lane tree: l[j] += l[j + 8], l[j] += l[j + 4], l[j] += l[j + 2], l[0] += l[1] (each for the lower half).
//    16-bit weights are widened exactly to float first.
//  - dot of blocks (Q8_0, Q4_0 with Q8 activations): block b has the exact int32 sum s of 32 products;
//    lane[b % 16] = fma(d_w * d_a, float(s), lane[b % 16]) in order of b, d_w * d_a rounded to float; same tree.
//  - dot of K blocks: their super-blocks hold 8 blocks of 32; block b meets the activation scale d_a and sum s_a.
//    Q4_K, Q5_K: s the exact int32 sum of q * a, d_s = d * scale and d_m = dmin * minimum, both exact in float;
//    lane[b % 16] = fma(d_s * d_a, float(s), lane[b % 16]), then fma(-d_m, d_a * float(s_a), lane[b % 16]), products
//    rounded to float. Q6_K: s the exact int32 sum c0 * s0 + c1 * s1 over the two halves of the block with their int8
//    scales (|s| < 2^24); lane[b % 16] = fma(d * d_a, float(s), lane[b % 16]). In order of b; same tree.
//  - dot of the other blocks (core/unpacked_block.h): s the exact int32 sum c0 * s0 + c1 * s1 over the two halves
//    (|s| < 2^24); lane[b % 16] = fma(d * d_a, float(s), lane[b % 16]). Types with a minimum: s_m = k0 * a0 + k1 * a1,
//    where a0 and a1 are the halves' sums of a, then fma(-m, d_a * float(s_m), lane[b % 16]). In order of b; same tree.
//  - dot of bit planes (core/bit_planes.h): s the exact int32 sum of code * a over part i of block b, its columns
//    4 i .. 4 i + 3; lane[b % 2 * 8 + i] = fma(d_a, float(s), lane[..]) in order of b; same tree. Blocks of 32 columns
//    of the activation, whose last one may be filled up with zeros.
//  - sum of units (down pass): integers, so that neither the order of the units nor their partition matters, not even
//    over devices. A sum is an int64 in units of 2^-kSumBits (core/op.h), added modulo 2^64. What unit u of weight h
//    adds to column c, where t(x) = x * 2^kSumBits:
//    - F32, F16, BF16: floor(t(h * w[u][c])), exact; h * w[u][c] must lie in [-2^15, 2^15).
//    - blocks: S * q, q the block's integer in column c, offset included (-8..7 of Q4_0, -32..31 of Q6_K), and
//      S = t(h * d) to the nearest integer, ties to even, h * d rounded to float. d is the block's scale (Q8_0, Q4_0),
//      or that of its half (Q6_K: d * scale, exact in float). |h * d| must be less than 2^15.
//    - Q4_K, Q5_K: S_d * q - S_m, with d_s and d_m (see above) in place of d.
//    - the other blocks: S * q - S_m in each half, with d * c and m * k in place of d.
//    - h = 0: nothing, whatever the weights are.
//    A contribution that is not as it must be poisons the sum, for blocks those of all 32 columns: it becomes INT64_MIN
//    and stays that, NaN in the end. Sums of more than 2^27 wrap.
//  - merged sums: INT64_MIN if either is, else a + b modulo 2^64. Value: NaN, else float(sum) * 2^-kSumBits.
//  - element-wise functions (exp, silu, gelu, tanh) are polynomials over fma, the same operations per element
//    everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hotset::cpu {

// Positions per KV page and per attention chunk. A chunk is reduced on its own, then chunks are merged in order.
constexpr int64_t kPagePositions = 32;
constexpr int64_t kChunkPositions = 256;

// Elements per quantisation block of weights and activations.
constexpr int64_t kBlock = 32;

// Elements per super-block of the K types and IQ4_XS: a row holds whole ones.
constexpr int64_t kSuperBlock = 256;

// Weight types with kernels, the index of the per-type tables below.
enum WeightType {
  kWeightF32,
  kWeightF16,
  kWeightBF16,
  kWeightQ8_0,
  kWeightQ4_0,
  kWeightQ4_K,
  kWeightQ5_K,
  kWeightQ6_K,
  kWeightQ2_K,
  kWeightQ3_K,
  kWeightIQ4_XS,
  kWeightQ4_1,
  kWeightQ5_0,
  kWeightQ5_1,
  kWeightIQ4_NL,
  kWeightMXFP4,
  kNWeightTypes
};

// Whether the weights come in blocks, which read quantised activations.
constexpr bool is_block_type(WeightType type) { return type >= kWeightQ8_0; }

// What the length of a row is a multiple of.
constexpr int64_t row_multiple(WeightType type) {
  if (type >= kWeightQ4_K && type <= kWeightIQ4_XS) return kSuperBlock;
  return is_block_type(type) ? kBlock : 1;
}

// One activation row (n elements). Float weights read `f32`; block weights `q`, `scale`, `sum` (n a multiple of 32).
struct ActivationRow {
  const float* f32;      // (n)
  const int8_t* q;       // (n) round(x / scale) in [-127, 127], block b at q + 32 * b
  const float* scale;    // (n / 32) max|x| / 127 of the block, 0 for an all-zero block
  const int32_t* sum;    // (n / 32) sum of the block's q
};

// Rows of a weight matrix: row u starts at data + u * stride and holds n elements. Rows need only 2-byte alignment.
struct WeightRows {
  const std::byte* data;
  size_t stride;
  int64_t n;
};

// out[a * out_stride + r] = dot(row first_row + r, activation a) for r < n_rows, a < n_acts.
struct GemmArgs {
  WeightRows w;
  int64_t first_row;
  int64_t n_rows;
  const ActivationRow* acts;
  int64_t n_acts;
  float* out;
  int64_t out_stride;  // floats between activation rows of `out`
  std::byte* scratch;  // gemm_scratch_bytes(n) for block weights, float_gemm_scratch_bytes() for float weights; 64-byte
                       // aligned, private to the calling thread
};

// sums[a * sums_stride + c] += what unit list ? list[i] : first_unit + i adds to column first_col + c with the weight
// h[a * h_stride + i], for i < n_units, c < n_cols, a < n_acts. first_col and n_cols are multiples of 32 for block
// types.
struct RowSumArgs {
  WeightRows w;
  const int32_t* list;  // unit numbers in ascending order, or nullptr for first_unit, first_unit + 1, ...
  int64_t first_unit;
  int64_t n_units;
  const float* h;
  int64_t h_stride;
  int64_t n_acts;
  int64_t first_col;
  int64_t n_cols;
  int64_t* sums;
  int64_t sums_stride;
};

// out[a * out_stride + r] = dot of the codes of row first_row + r and activation a, for r < n_rows, a < n_acts.
struct PlaneDotArgs {
  WeightRows w;  // rows as encode_planes writes them; n columns, of which the activations hold whole blocks
  int64_t first_row;
  int64_t n_rows;
  const ActivationRow* acts;  // q, scale
  int64_t n_acts;
  float* out;
  int64_t out_stride;
};

// margins[i] = fma(step[i], margins[i], fma(low[i], sum, fma(error[i], slack, bias[i]))); without a bias 0 stands for it.
struct MarginArgs {
  const float *low, *step, *error, *bias;
  float sum;    // of the activation's q * scale
  float slack;  // how much of its error a unit is given
  int64_t n;
  float* margins;  // in: the dots of the codes
};

// One chunk of attention for queries that share a KV head. For query i, with position t visible when
// begin[i] <= t < end[i] (indices within the chunk):
//   s[t] = softcap(scale * dot(q_i, k_t)), m = max s (NaN left out, +0 for either zero), p[t] = exp(s[t] - m),
//   l = sum of p over 16 lanes (lane t % 16, plain adds, lane tree), o[d] = fma(p[t], v_t[d], o[d]) in order of t.
// Keys and values are widened exactly to float first, as weights are; the dot is the dot of floats.
// softcap(s) = cap * tanh(s / cap), or s when softcap == 0. A query that sees nothing gets m = -inf, l = 0, o = 0.
struct AttendArgs {
  const float* const* q;           // n_q pointers to (head_dim)
  const int32_t* begin;            // (n_q)
  const int32_t* end;              // (n_q), <= n_pos
  int64_t n_q;
  const std::byte* const* k_pages; // pages of kPagePositions rows of head_dim elements, n_pos positions in all
  const std::byte* const* v_pages;
  WeightType kv_type;              // of their elements: F32, F16 or Q8_0 (head_dim a multiple of 32)
  int64_t n_pos;                   // <= kChunkPositions
  int64_t head_dim;
  float scale;
  float softcap;
  float* m;                        // (n_q)
  float* l;                        // (n_q)
  float* o;                        // (n_q, head_dim), o_stride floats apart
  int64_t o_stride;
  std::byte* scratch;              // attend_scratch_bytes(head_dim), 64-byte aligned
};

struct Kernels {
  const char* isa;  // "generic", "avx2", "avx512", "amx"

  // x (n) -> q, scale, sum as in ActivationRow. inverse = 127 / max|x|; q = round to nearest even of x * inverse.
  // A block that holds a NaN or infinity gets scale NaN, so that it is not lost silently. A block whose inverse would
  // overflow (max|x| < 127 / FLT_MAX = 3.7e-37) counts as all zero.
  void (*quantize_activation)(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum);

  // out[r] = dot(row rows ? rows[r] : first_row + r, a) for r < n_rows. Streams the rows once: bound by memory.
  void (*dot_rows[kNWeightTypes])(const WeightRows& w, const int32_t* rows, int64_t first_row, int64_t n_rows,
                                  const ActivationRow& a, float* out);

  // Many activations at once (prefill): same results as dot_rows, more arithmetic per byte.
  void (*gemm[kNWeightTypes])(const GemmArgs& args);
  size_t (*gemm_scratch_bytes)(int64_t n);
  size_t (*float_gemm_scratch_bytes)();

  void (*row_sum[kNWeightTypes])(const RowSumArgs& args);

  // By the number of bits - 1. Rows are streamed once for every few activations.
  void (*plane_dots[3])(const PlaneDotArgs& args);
  void (*plane_margins)(const MarginArgs& args);

  // Weights to float: exactly (f16 scale times integers is exact in float), but where there is a minimum, which is one
  // rounding: fma(d_s, q, -d_m).
  void (*dequantize_row[kNWeightTypes])(const std::byte* row, int64_t n, float* out);

  void (*f32_to_f16_row)(const float* x, int64_t n, uint16_t* out);

  // out = x * (1 / sqrt(mean(x^2) + eps)) * weight; sum of squares over 16 lanes as in a dot. out may equal x.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);

  // c = x - mean(x), the mean a plain sum over 16 lanes as in a dot divided by n; then
  // out = c * (1 / sqrt(mean(c^2) + eps)) * weight + bias, every product and sum rounded. bias may be null. out may equal x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out);

  // Rotates pairs of one head in place: (x[2i], x[2i+1]) when interleaved, else (x[i], x[i + n_rot/2]), by the angle
  // whose cos and sin are given; elements from n_rot on are left alone. x0' = x0*cos - x1*sin, each product rounded.
  void (*rope)(float* x, int64_t n_rot, bool interleaved, const float* cos, const float* sin);

  // h[i] = act(gate[i]) * up[i]; silu(x) = x / (1 + exp(-x)), relu(x) = x > 0 ? x : 0. h may equal gate or up.
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* h);
  void (*relu_mul)(const float* gate, const float* up, int64_t n, float* h);
  // h[i] = act(x[i]). h may equal x.
  void (*silu)(const float* x, int64_t n, float* h);
  void (*relu)(const float* x, int64_t n, float* h);
  void (*gelu)(const float* x, int64_t n, float* h);       // x * Phi(x)
  void (*gelu_tanh)(const float* x, int64_t n, float* h);  // its approximation by tanh
  // h[i] = x[i] > 0 ? x[i] + threshold : 0. h may equal x.
  void (*fat_relu)(const float* x, float threshold, int64_t n, float* h);

  // Writes the indices i < n for which x[i] is not <= 0 (NaN included) in ascending order to `list`, which has room for
  // n; returns how many there are.
  int64_t (*select_units)(const float* x, int64_t n, int32_t* list);

  // out may equal an input.
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*mul)(const float* a, const float* b, int64_t n, float* out);
  void (*scale)(const float* x, float scale, int64_t n, float* out);
  void (*soft_cap)(const float* x, float cap, int64_t n, float* out);  // cap * tanh(x / cap)

  void (*attend_chunk)(const AttendArgs& args);
  size_t (*attend_scratch_bytes)(int64_t head_dim);
};

// The table of the named instruction set (generic | avx2 | avx512 | amx), or for nullptr or "" that of best_isa().
// Throws hotset::Error for an unknown name or one this CPU lacks. "avx512" means F, BW, DQ, VL, VNNI and VBMI is not
// needed; "avx2" means AVX2, FMA and F16C; "amx" means AMX-TILE and AMX-INT8 for the gemms of block weights, and
// AVX-512 for the rest; all also ask the operating system (XGETBV). For "amx" it must let this process have tiles, or
// DeviceError is thrown.
const Kernels& kernels_for(const char* isa);

// Name of the best instruction set here: "generic", "avx2" or "avx512", never "amx".
const char* best_isa();

}  // namespace hotset::cpu
