// gpu_probe: measures on the first GPU what hotset's design rests on. Stand-alone; docs/GPU.md tells how to run it.
//
//   nvcc -O3 -std=c++17 -arch=native tools/gpu_probe.cu -o gpu_probe && ./gpu_probe --json gpu_probe.json

#include "gpu_probe_gather.cuh"
#include "gpu_probe_graph.cuh"
#include "gpu_probe_handoff.cuh"
#include "gpu_probe_memop.cuh"
#include "gpu_probe_pcie.cuh"
#include "gpu_probe_selftest.cuh"

namespace hotset::probe {
namespace {

/// One question to the hardware. Parts do not depend on each other.
struct Part {
  const char* name;
  const char* question;
  void (*run)(const Probe& probe, std::deque<Table>& tables);
};

const Part kParts[] = {
    {"memop", "do batch memory-op nodes work in graphs, and what does replaying them cost?", probe_memop},
    {"handoff", "what does a hand-off to the host and back cost, by the way of waiting?", probe_handoff},
    {"gather", "how fast are rows read at random, against a dense read?", probe_gather},
    {"pcie", "how fast are copies between host and device?", probe_pcie},
    {"graph", "what does launching a graph cost, and each node?", probe_graph},
    {"zerocopy", "how fast do kernels reach mapped host memory?", probe_zerocopy},
};

// A part gets its measuring time and this much for set-up before its waits are released, then as much again until the
// program gives up: with the default --seconds, one hung part still ends the run within a minute.
constexpr double kSetupSeconds = 5;
constexpr double kOpenSeconds = 20;  // servers with many GPUs take seconds to open one

void print_help() {
  std::printf(
      "usage: gpu_probe [--seconds S] [--only PART].. [--json FILE] [--list] [--self-test] [--help]\n"
      "Measures on the first GPU what hotset's design rests on. Tables go to stdout.\n"
      "  --seconds S   measuring time of each part, 0.1 to 60 (default 3)\n"
      "  --only PART   run this part only; may be given several times\n"
      "  --json FILE   write machine and figures as JSON, renewed after every part\n"
      "  --list        name the parts\n"
      "  --self-test   check the program's host logic; needs no GPU\n"
      "exit code: 0 every part ran; 1 no GPU, or a part failed; 2 wrong usage\n");
}

/// First line of `path` that contains `key`, from `key` on; empty if there is none.
std::string find_line(const char* path, const std::string& key) {
  std::FILE* file = std::fopen(path, "r");
  if (!file) return "";
  std::string found;
  char line[512];
  while (found.empty() && std::fgets(line, sizeof line, file)) {
    const std::string text(line);
    const std::size_t at = text.find(key);
    if (at != std::string::npos) found = text.substr(at, text.find_last_not_of(" \n") + 1 - at);
  }
  std::fclose(file);
  return found;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Makes the first GPU current; throws one clear error if there is none.
void open_device() {
  int driver = 0, n_devices = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  if (driver == 0) {
    throw Error("[device] NVIDIA driver: expected one, got none; run on a machine with an NVIDIA GPU and its driver");
  }
  const cudaError_t found = cudaGetDeviceCount(&n_devices);
  if (found == cudaErrorNoDevice || (found == cudaSuccess && n_devices == 0)) {
    throw Error("[device] GPU: expected at least one, got none; check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  check(found, "cudaGetDeviceCount");
  check(cudaSetDevice(0), "cudaSetDevice");
  check(cudaFree(nullptr), "cudaFree");  // makes the context
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, empty_kernel) != cudaSuccess) {
    throw Error("[device] GPU code: expected code for this GPU in the program, got none; build with -arch=native");
  }
}

/// Names of device, host and software.
void describe_machine(Report& report, std::uint32_t& n_sm) {
  cudaDeviceProp device{};
  int driver = 0, runtime = 0;
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  n_sm = static_cast<std::uint32_t>(device.multiProcessorCount);
  auto& machine = report.machine;
  machine.emplace_back("gpu", device.name);
  machine.emplace_back("compute_capability", std::to_string(device.major) + "." + std::to_string(device.minor));
  machine.emplace_back("n_sm", static_cast<double>(device.multiProcessorCount));
  machine.emplace_back("memory_bytes", static_cast<double>(device.totalGlobalMem));
  machine.emplace_back("l2_bytes", static_cast<double>(device.l2CacheSize));
  machine.emplace_back("integrated", device.integrated != 0);
  machine.emplace_back("driver_cuda", version_text(driver));
  machine.emplace_back("runtime_cuda", version_text(runtime));
  machine.emplace_back("driver", find_line("/proc/driver/nvidia/version", "NVRM"));
  machine.emplace_back("kernel", find_line("/proc/version", ""));
  machine.emplace_back("cpu", find_line("/proc/cpuinfo", "model name"));
  machine.emplace_back("n_cpu_threads", static_cast<double>(std::thread::hardware_concurrency()));
}

void save(const Options& options, const Report& report) {
  if (!options.json_path.empty()) write_file(options.json_path, to_json(report));
}

/// Runs one part under the watchdog and prints its tables; false if it failed.
bool run_part(const Part& part, const Probe& probe, PartResult& result) {
  const auto start = Clock::now();
  probe.watchdog.arm(part.name, probe.seconds + kSetupSeconds, probe.seconds + 2 * kSetupSeconds);
  cudaGetLastError();  // an error of the part before is not this part's
  try {
    part.run(probe, result.tables);
    result.status = "ok";
  } catch (const std::exception& error) {
    result.status = "failed";
    result.error = error.what();
  }
  probe.watchdog.disarm();
  result.seconds = seconds_since(start);
  std::printf("\n== %s: %s\n", part.name, part.question);
  for (const Table& table : result.tables) std::printf("\n%s", render(table).c_str());
  const std::string why = result.error.empty() ? "" : ": " + result.error;
  std::printf("\n%s: %s, %.1f s%s\n", part.name, result.status.c_str(), result.seconds, why.c_str());
  std::fflush(stdout);
  return result.status == "ok";
}

/// Runs all parts asked for; returns the exit code.
int run_parts(const Options& options) {
  // Loading code lazily would allocate while the device waits for the host, which can lock up for good.
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);
  Watchdog watchdog([](const std::string& what) {
    std::fprintf(stderr, "gpu_probe: error: [%s] device: expected an end, got none; see docs/GPU.md\n", what.c_str());
    std::_Exit(1);
  });
  watchdog.arm("device", kOpenSeconds, kOpenSeconds);
  open_device();
  Probe probe{watchdog, find_driver_api()};
  watchdog.disarm();
  probe.seconds = options.seconds;
  Report report;
  describe_machine(report, probe.n_sm);
  std::printf("machine\n");
  for (const auto& [name, cell] : report.machine) std::printf("  %-20s%s\n", name.c_str(), format_cell(cell).c_str());
  bool all_ok = true;
  for (const Part& part : kParts) {
    const auto& only = options.only;
    if (!only.empty() && std::find(only.begin(), only.end(), part.name) == only.end()) continue;
    PartResult& result = report.parts.emplace_back(PartResult{part.name, "running", "", 0, {}});
    save(options, report);  // if the program dies in this part, the file says so
    all_ok &= run_part(part, probe, result);
    save(options, report);
  }
  return all_ok ? 0 : 1;
}

int run(const std::vector<std::string>& args) {
  std::vector<std::string> names;
  for (const Part& part : kParts) names.push_back(part.name);
  const Options options = parse_options(args, names);
  if (options.help) {
    print_help();
    return 0;
  }
  if (options.list) {
    for (const Part& part : kParts) std::printf("%-10s%s\n", part.name, part.question);
    return 0;
  }
  return options.self_test ? run_self_test() : run_parts(options);
}

}  // namespace
}  // namespace hotset::probe

int main(int argc, char** argv) {
  try {
    return hotset::probe::run({argv + (argc > 0), argv + argc});
  } catch (const hotset::probe::UsageError& error) {
    std::fprintf(stderr, "gpu_probe: error: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_probe: error: %s\n", error.what());
    return 1;
  }
}
