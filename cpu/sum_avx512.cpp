// Exact sums of units for AVX-512.
#include "cpu/sum_plain.h"

namespace hotset::cpu {

void fill_sum_avx512(Kernels& table) { fill_plain_sums(table); }

}  // namespace hotset::cpu
