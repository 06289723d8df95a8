// AMX gemms on any machine with AVX-512.
#pragma once

#include "cpu/kernels.h"

namespace hotset::cpu {

// As fill_block_amx (cpu/kernels_fill.h), but over tiles emulated in plain code: slow, and the same sequence of loads,
// multiplications and stores. Needs AVX-512. Breaking a rule of the tile instructions is an illegal instruction here
// too.
void fill_block_emulated_amx(Kernels& table);

}  // namespace hotset::cpu
