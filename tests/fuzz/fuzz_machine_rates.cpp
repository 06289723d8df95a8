// libFuzzer target for machine.json: whatever the bytes, rates that can be used or a hotset error of one line.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/machine_rates.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  try {
    const std::string text(reinterpret_cast<const char*>(bytes), size);
    const hotset::MachineRates rates = hotset::parse_machine_rates("fuzz", text);
    for (const int32_t n_threads : {1, 2, 64}) {
      require(rates.dense_gbps(n_threads) > 0);
      const double gathered = rates.gathered_gbps(n_threads, 1000, 0.1);
      require(std::isfinite(gathered) && gathered >= 0);
      for (const double density : rates.densities(n_threads)) require(density > 0 && density <= 1);
    }
    if (rates.gpu) require(rates.gpu->dense_gbps > 0 && rates.gpu->gathered_gbps(1000, 0.1) > 0);
    if (rates.pcie) require(rates.pcie->h2d_gbps > 0 && rates.pcie->d2h_gbps > 0);
    if (rates.handoff_us) require(std::isfinite(*rates.handoff_us) && *rates.handoff_us >= 0);
  } catch (const hotset::Error& error) {
    require(std::strchr(error.what(), '\n') == nullptr);
  }
  return 0;
}
