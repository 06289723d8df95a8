// The gemm of the types of core/unpacked_block.h for AVX-512 (see cpu/unpacked_gemm.h).
#include "cpu/block_avx512_gemm.h"
#include "cpu/kernels_fill.h"
#include "cpu/unpacked_avx2_dot.h"
#include "cpu/unpacked_avx2_gemm.h"

namespace hotset::cpu {
namespace {

// A chunk is two of AVX2's.
struct UnpackedAvx512 {
  static constexpr int64_t kWidth = 16;

  struct Weights {
    __m512i q[8];  // unsigned: without a minimum 128 more
    __m512 d, minus_m;
    __m512i c[2];        // dword l: c[h] of block l
    __m512i both_c, k;   // dword l: c, k of both halves, as int16
  };

  struct Activations {
    __m512i q[8];
    __m512 scale;
    __m512i half_sums;
  };

  static void unpack_activation(const int8_t* q, const float* scale, Activations& to) {
    UnpackedAvx2::Activations part[2];
    for (int i = 0; i < 2; ++i) UnpackedAvx2::unpack_activation(q + 8 * kBlock * i, scale + 8 * i, part[i]);
    for (int g = 0; g < 8; ++g) to.q[g] = join(part[0].q[g], part[1].q[g]);
    to.scale = join(part[0].scale, part[1].scale);
    to.half_sums = join(part[0].half_sums, part[1].half_sums);
  }

  template <class Format>
  static void unpack_weights(const std::byte* at, Weights& to) {
    UnpackedAvx2::Weights part[2];
    for (int i = 0; i < 2; ++i)
      UnpackedAvx2::unpack_weights<Format>(at + 8 / Format::kBlocks * Format::kBytes * i, part[i]);
    const __m512i up = _mm512_set1_epi8(static_cast<char>(Format::kHasMinimum ? 0 : 0x80));
    for (int g = 0; g < 8; ++g) to.q[g] = _mm512_xor_si512(join(part[0].q[g], part[1].q[g]), up);
    to.d = join(part[0].d, part[1].d);
    to.minus_m = join(part[0].minus_m, part[1].minus_m);
    to.k = join(part[0].k, part[1].k);
    const __m512i c[2] = {join(part[0].c[0], part[1].c[0]), join(part[0].c[1], part[1].c[1])};
    for (int h = 0; h < 2; ++h) to.c[h] = _mm512_srai_epi32(c[h], 16);
    to.both_c = _mm512_mask_blend_epi16(0xaaaaaaaa, c[0], c[1]);
  }

  template <bool kMinimum, int N>
  static void dots(const Weights* w, const Activations* acts, int64_t n_chunks, float* out, int64_t out_stride) {
    __m512 acc[N];
    for (int a = 0; a < N; ++a) acc[a] = _mm512_setzero_ps();
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk, ++w) {
      __m512i s[2][N];
      for (int a = 0; a < N; ++a) s[0][a] = s[1][a] = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g)
        for (int a = 0; a < N; ++a)
          s[g / 4][a] = _mm512_dpbusd_epi32(s[g / 4][a], w->q[g], acts[a * n_chunks + chunk].q[g]);
      for (int a = 0; a < N; ++a) {
        const Activations& act = acts[a * n_chunks + chunk];
        __m512i sum =
            _mm512_add_epi32(_mm512_mullo_epi32(s[0][a], w->c[0]), _mm512_mullo_epi32(s[1][a], w->c[1]));
        if constexpr (!kMinimum)
          sum = _mm512_sub_epi32(sum, _mm512_slli_epi32(_mm512_madd_epi16(act.half_sums, w->both_c), 7));
        acc[a] = _mm512_fmadd_ps(_mm512_mul_ps(w->d, act.scale), _mm512_cvtepi32_ps(sum), acc[a]);
        if constexpr (kMinimum) {
          const __m512 sums = _mm512_cvtepi32_ps(_mm512_madd_epi16(act.half_sums, w->k));
          acc[a] = _mm512_fmadd_ps(w->minus_m, _mm512_mul_ps(act.scale, sums), acc[a]);
        }
      }
    }
    for (int a = 0; a < N; ++a) out[a * out_stride] = reduce_lanes(acc[a]);
  }

 private:
  static __m512i join(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  static __m512 join(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
};

// As for AVX2.
static_assert(UnpackedGemm<UnpackedAvx512>::kChunkBytes / 16 <=
                  Avx512::kMaxActs / Avx512::kTile * Avx512::kMaxActRecordBytes &&
              UnpackedGemm<UnpackedAvx512>::kChunkBytes <= BlockGemm<Avx512>::scratch_bytes(0));

template <class Format>
void gemm(const GemmArgs& args) {
  if (args.n_acts == 1) return dot_rows<Format>(args.w, nullptr, args.first_row, args.n_rows, args.acts[0], args.out);
  UnpackedGemm<UnpackedAvx512>::run<Format>(args);
}

}  // namespace

void fill_unpacked_avx512(Kernels& table) {
  for_unpacked_formats([&]<WeightType type, class Format>() {
    table.dot_rows[type] = dot_rows<Format>;
    table.gemm[type] = gemm<Format>;
  });
}

}  // namespace hotset::cpu
