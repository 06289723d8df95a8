// Float kernels for AVX2, FMA and F16C: the shared kernels compiled over this instruction set's Vec.
#include "cpu/float_vec_avx2.h"

#include "cpu/float_rows.h"

namespace hotset::cpu {

void fill_float_avx2(Kernels& table) { fill_float(table); }

}  // namespace hotset::cpu
