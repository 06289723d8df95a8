// Block gemms for AMX-INT8 on top of AVX-512 (see cpu/block_amx_gemm.h).
#include "cpu/block_amx_gemm.h"
#include "cpu/kernels_fill.h"

namespace hotset::cpu {
namespace {

// The instructions. The compiler's own intrinsics name no memory as their operand (gcc 12), and take tile numbers as
// text only, which no template can give them.
struct AmxTiles {
  static void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }

  // Rows lie `stride` bytes apart.
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
  }

  template <int kTile>
  static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
  }

  // C += A * B, where A has signed bytes and B unsigned ones.
  template <int kC, int kA, int kB>
  static void add_signed_by_unsigned() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

}  // namespace

void fill_block_amx(Kernels& table) { fill_gemms<AmxTiles>(table); }

}  // namespace hotset::cpu
