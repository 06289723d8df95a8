// Exact sums of units for any CPU.
#include "cpu/sum_plain.h"

namespace hotset::cpu {

void fill_sum_generic(Kernels& table) { fill_plain_sums(table); }

}  // namespace hotset::cpu
