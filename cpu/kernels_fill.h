// Who fills which part of the kernel table. Private to cpu/.
#pragma once

#include "cpu/kernels.h"

namespace hotset::cpu {

// Float weights, norms, attention and everything else but block dots: cpu/float_<isa>.cpp.
void fill_float_generic(Kernels& table);
void fill_float_avx2(Kernels& table);
void fill_float_avx512(Kernels& table);

// quantize_activation, dot_rows and gemm of Q8_0 and Q4_0, gemm_scratch_bytes: cpu/block_<isa>.cpp.
void fill_block_generic(Kernels& table);
void fill_block_avx2(Kernels& table);
void fill_block_avx512(Kernels& table);

// dot_rows and gemm of Q4_K, Q5_K and Q6_K, and gemm_scratch_bytes for all block types: cpu/block_k_<isa>.cpp. After
// fill_block_<isa>.
void fill_block_k_generic(Kernels& table);
void fill_block_k_avx2(Kernels& table);
void fill_block_k_avx512(Kernels& table);

// dot_rows, gemm and dequantize_row of the types of core/unpacked_block.h: cpu/unpacked_generic.cpp, for every
// instruction set; then dot_rows and gemm: cpu/unpacked_<isa>.cpp.
void fill_unpacked_generic(Kernels& table);
void fill_unpacked_avx2(Kernels& table);
void fill_unpacked_avx512(Kernels& table);

// gemm of all other block types and gemm_scratch_bytes, in place of those of AVX-512: cpu/block_amx.cpp.
void fill_block_amx(Kernels& table);

// row_sum: cpu/sum_<isa>.cpp.
void fill_sum_generic(Kernels& table);
void fill_sum_avx2(Kernels& table);
void fill_sum_avx512(Kernels& table);

// plane_dots: cpu/plane_<isa>.cpp.
void fill_plane_generic(Kernels& table);
void fill_plane_avx2(Kernels& table);
void fill_plane_avx512(Kernels& table);

}  // namespace hotset::cpu
