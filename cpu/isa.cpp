// Which instruction sets this machine has, and the kernel table of each.
#include <cstring>
#include <string>

#include "core/error.h"
#include "cpu/kernels.h"
#include "cpu/kernels_fill.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace hotset::cpu {
namespace {

enum Level { kGeneric, kAvx2, kAvx512, kAmx, kNLevels };
constexpr const char* kNames[kNLevels] = {"generic", "avx2", "avx512", "amx"};

#if defined(__x86_64__)

// Bits of the operating system's register state mask (XCR0): it saves xmm and ymm; also the opmask and zmm registers;
// also tiles and their configuration.
constexpr uint32_t kSavesYmm = 0x6;
constexpr uint32_t kSavesZmm = 0xe6;
constexpr uint32_t kSavesTiles = 0x600e6;

// AMX-TILE and AMX-INT8 in edx of CPUID leaf 7; compilers name them differently.
constexpr uint32_t kHasTiles = 1u << 24 | 1u << 25;

uint32_t saved_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool has_all(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

Level detect() {
  uint32_t eax, ebx, ecx, edx, ecx1;
  if (!__get_cpuid(1, &eax, &ebx, &ecx1, &edx)) return kGeneric;
  if (!has_all(ecx1, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C)) return kGeneric;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return kGeneric;
  const uint32_t saved = saved_state();
  if (!has_all(ebx, bit_AVX2) || !has_all(saved, kSavesYmm)) return kGeneric;
  const bool avx512 = has_all(ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) &&
                      has_all(ecx, bit_AVX512VNNI) && has_all(saved, kSavesZmm);
  if (!avx512) return kAvx2;
  return has_all(edx, kHasTiles) && has_all(saved, kSavesTiles) ? kAmx : kAvx512;
}

#else

Level detect() { return kGeneric; }

#endif

Level most_level() {
  static const Level level = detect();
  return level;
}

// AMX was never timed on hardware, so it is there for those who name it only.
Level best_level() { return most_level() < kAmx ? most_level() : kAvx512; }

// Linux gives a process the 8 KB of tile data per thread when it asks: once, for all threads it has or will have.
void ask_for_tiles() {
  std::string reason = "another system";
#if defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) return;
  reason = std::strerror(errno);
#endif
  throw DeviceError(error_text("cpu", "tiles of AMX", "permission from the system (Linux 5.16 or newer)", reason,
                               "unset HOTSET_ISA to let hotset choose"));
}

// Built at first use: filling a table may itself run instructions of its set.
template <Level level>
const Kernels& table_of() {
  static const Kernels table = [] {
    Kernels built{};
    built.isa = kNames[level];
    fill_unpacked_generic(built);
#if defined(__x86_64__)
    if constexpr (level >= kAvx512) {
      fill_float_avx512(built);
      fill_block_avx512(built);
      fill_block_k_avx512(built);
      fill_unpacked_avx512(built);
      if (level == kAmx) fill_block_amx(built);
      fill_sum_avx512(built);
      fill_plane_avx512(built);
      return built;
    } else if constexpr (level == kAvx2) {
      fill_float_avx2(built);
      fill_block_avx2(built);
      fill_block_k_avx2(built);
      fill_unpacked_avx2(built);
      fill_sum_avx2(built);
      fill_plane_avx2(built);
      return built;
    }
#endif
    fill_float_generic(built);
    fill_block_generic(built);
    fill_block_k_generic(built);
    fill_sum_generic(built);
    fill_plane_generic(built);
    return built;
  }();
  return table;
}

}  // namespace

const char* best_isa() { return kNames[best_level()]; }

const Kernels& kernels_for(const char* isa) {
  int level = best_level();
  if (isa != nullptr && *isa != '\0') {
    level = 0;
    while (level < kNLevels && std::strcmp(isa, kNames[level]) != 0) ++level;
    if (level == kNLevels)
      throw Error(error_text("cpu", "unknown instruction set", "generic, avx2, avx512 or amx", quoted(isa),
                             "correct HOTSET_ISA, or unset it to let hotset choose"));
  }
  if (level > most_level())
    throw DeviceError(error_text("cpu", "this CPU lacks an instruction set",
                                 std::string("at most ") + kNames[most_level()], isa,
                                 "correct HOTSET_ISA, or unset it to let hotset choose"));
  switch (level) {
    case kAmx:
      ask_for_tiles();
      return table_of<kAmx>();
    case kAvx512:
      return table_of<kAvx512>();
    case kAvx2:
      return table_of<kAvx2>();
    default:
      return table_of<kGeneric>();
  }
}

}  // namespace hotset::cpu
