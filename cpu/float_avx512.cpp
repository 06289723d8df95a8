// Float kernels for AVX-512: the shared kernels compiled over this instruction set's Vec.
#include "cpu/float_vec_avx512.h"

#include "cpu/float_rows.h"

namespace hotset::cpu {

void fill_float_avx512(Kernels& table) { fill_float(table); }

}  // namespace hotset::cpu
