// The choice of a kernel table.
#include <doctest/doctest.h>

#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "cpu/kernels.h"
#include "tests/cpp/util.h"

namespace hotset::cpu {
namespace {

// True when no entry is missing.
bool is_complete(const Kernels& k) {
  bool complete = k.quantize_activation && k.gemm_scratch_bytes && k.float_gemm_scratch_bytes && k.f32_to_f16_row &&
                  k.rms_norm && k.layer_norm && k.rope && k.silu_mul && k.relu_mul && k.silu && k.relu &&
                  k.gelu && k.gelu_tanh && k.fat_relu && k.mul && k.scale && k.soft_cap &&
                  k.select_units && k.add && k.attend_chunk && k.attend_scratch_bytes;
  for (int type = 0; type < kNWeightTypes; ++type)
    complete = complete && k.dot_rows[type] && k.gemm[type] && k.row_sum[type] && k.dequantize_row[type];
  return complete;
}

TEST_CASE("kernels_for gives the named table, or the best one for no name") {
  const std::string best = best_isa();
  CHECK(std::string(kernels_for("generic").isa) == "generic");
  CHECK(std::string(kernels_for(best.c_str()).isa) == best);
  CHECK(&kernels_for(nullptr) == &kernels_for(best.c_str()));
  CHECK(&kernels_for("") == &kernels_for(nullptr));
  for (const char* isa : {"generic", "avx2", "avx512"}) {
    CHECK(is_complete(kernels_for(isa)));
    if (best == isa) break;  // what comes after the best is missing here
  }
}

TEST_CASE("kernels_for gives AMX to those who name it only, and AVX-512 for what it leaves alone") {
  CHECK(std::string(best_isa()) != "amx");
  if (test::isas().back() != "amx") {
    MESSAGE("no AMX here: its gemms ran over emulated tiles only (tests/cpp/emulated_tiles.cpp)");
    CHECK_THROWS_AS(kernels_for("amx"), DeviceError);
    return;
  }
  const Kernels &amx = kernels_for("amx"), &avx512 = kernels_for("avx512");
  CHECK(std::string(amx.isa) == "amx");
  CHECK(is_complete(amx));
  CHECK((amx.attend_chunk == avx512.attend_chunk));
  for (int type = 0; type < kNWeightTypes; ++type) {
    CHECK((amx.dot_rows[type] == avx512.dot_rows[type]));
    CHECK((amx.gemm[type] != avx512.gemm[type]) == (type >= kWeightQ8_0 && type <= kWeightQ6_K));
  }
}

TEST_CASE("kernels_for refuses unknown names and what this CPU lacks") {
  CHECK_THROWS_AS(kernels_for("avx1024"), Error);
  CHECK_THROWS_AS(kernels_for("AVX2"), Error);
  try {
    kernels_for("neon\n");
    FAIL("an unknown name was taken");
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find("generic, avx2, avx512 or amx") != std::string::npos);
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
  }
  const std::string best = best_isa();
  if (best != "avx512") CHECK_THROWS_AS(kernels_for("avx512"), DeviceError);
  if (best == "generic") CHECK_THROWS_AS(kernels_for("avx2"), DeviceError);
}

TEST_CASE("kernels_for may be called by many threads at once") {
  std::vector<const Kernels*> seen(8);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < seen.size(); ++i) threads.emplace_back([&seen, i] { seen[i] = &kernels_for(nullptr); });
  for (std::thread& thread : threads) thread.join();
  for (const Kernels* table : seen) CHECK(table == seen[0]);
}

}  // namespace
}  // namespace hotset::cpu
