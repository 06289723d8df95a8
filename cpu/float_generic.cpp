// Float kernels for any CPU: the shared kernels compiled over the portable Vec.
#include "cpu/float_vec_generic.h"

#include "cpu/float_rows.h"

namespace hotset::cpu {

void fill_float_generic(Kernels& table) { fill_float(table); }

}  // namespace hotset::cpu
