// Kernels of the types of core/unpacked_block.h for AVX2, FMA and F16C.
#include "cpu/kernels_fill.h"
#include "cpu/unpacked_avx2_dot.h"
#include "cpu/unpacked_avx2_gemm.h"

namespace hotset::cpu {
namespace {

template <class Format>
void gemm(const GemmArgs& args) {
  if (args.n_acts == 1) return dot_rows<Format>(args.w, nullptr, args.first_row, args.n_rows, args.acts[0], args.out);
  UnpackedGemm<UnpackedAvx2>::run<Format>(args);
}

}  // namespace

void fill_unpacked_avx2(Kernels& table) {
  for_unpacked_formats([&]<WeightType type, class Format>() {
    table.dot_rows[type] = dot_rows<Format>;
    table.gemm[type] = gemm<Format>;
  });
}

}  // namespace hotset::cpu
