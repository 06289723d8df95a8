// `hotset bench --machine`: the rates that placement needs, as machine.json and as a table.
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <optional>
#include <set>

#include "cpu/read_rates.h"
#include "tools/common.h"
#include "tools/json.h"
#include "tools/machine.h"
#include "tools/output_file.h"

namespace hotset::cli {
namespace {

// Row sizes of real models: 576 bytes is a Q4_0 row of n_embd 1024, 18432 an F16 row (or two Q8_0 rows) of 8-9
// thousand.
constexpr int64_t kRowBytes[] = {576, 1152, 2304, 4608, 9216, 18432};
constexpr double kDensities[] = {0.02, 0.05, 0.1, 0.2, 0.5};
constexpr const char* kGpuReason = "this version measures no GPU";

constexpr int kRounds = 5;

constexpr uint64_t kMinBuffer = uint64_t{512} << 20;
constexpr uint64_t kMaxBuffer = uint64_t{4} << 30;

// Eight times the caches, so that at most an eighth of what is read can be there already; a quarter of the free memory
// at most, as there may be two buffers. Throws Error when that leaves less than twice the caches.
uint64_t buffer_bytes(const Machine& machine) {
  const uint64_t wanted = std::clamp(8 * machine.cache_bytes, kMinBuffer, kMaxBuffer);
  const uint64_t possible = std::min(wanted, machine.free_bytes / 4);
  const uint64_t needed = std::max<uint64_t>(2 * machine.cache_bytes, uint64_t{64} << 20);
  if (possible < needed) {
    throw Error(error_text("bench", "free memory for --machine", bytes_text(4 * needed), bytes_text(machine.free_bytes),
                           "close other programs"));
  }
  return possible;
}

// The asked thread counts, ascending, each once; without any, powers of two up to the cores, and the cores.
std::vector<int32_t> thread_counts(const std::vector<int64_t>& asked, int n_physical) {
  std::set<int32_t> counts;
  for (const int64_t n : asked) counts.insert(n == 0 ? n_physical : static_cast<int32_t>(n));
  if (asked.empty()) {
    for (int32_t n = 1; n < n_physical; n *= 2) counts.insert(n);
    counts.insert(n_physical);
  }
  return {counts.begin(), counts.end()};
}

// Everything measured with one kind of pages and one number of threads.
struct Measured {
  cpu::ReadMeter* meter;
  const char* pages;
  int32_t n_threads;
  cpu::ReadSeries dense;
  std::vector<cpu::ReadSeries> gathered;  // sizes, and for each the densities

  Measured(cpu::ReadMeter* from, const char* kind, int32_t threads)
      : meter(from), pages(kind), n_threads(threads), dense(cpu::ReadSeries::dense(threads)) {
    for (const int64_t row_bytes : kRowBytes) {
      for (const double density : kDensities) {
        gathered.push_back(cpu::ReadSeries::gathered(threads, static_cast<size_t>(row_bytes), density));
      }
    }
  }

  // Adds samples to all, each for `seconds`.
  void visit(double seconds) {
    meter->visit(dense, seconds);
    for (cpu::ReadSeries& series : gathered) {
      if (interrupted()) throw Interrupted();
      meter->visit(series, seconds);
    }
  }

  ReadRates rates() const {
    const cpu::MeasuredRate best = dense.rate();
    ReadRates out{pages, n_threads, best.gbps, best.shape.streams, {}};
    for (size_t i = 0; i < gathered.size(); ++i) {
      const cpu::MeasuredRate rate = gathered[i].rate();
      out.gathered.push_back({kRowBytes[i / std::size(kDensities)], kDensities[i % std::size(kDensities)], rate.gbps,
                              rate.shape.streams, static_cast<int32_t>(rate.shape.ahead)});
    }
    return out;
  }
};

// The rounds go through everything again and again: no rate depends on one good or bad moment of the machine.
std::vector<ReadRates> measure_reads(const Machine& machine, uint64_t n_bytes, const MachineBenchFlags& flags) {
  const std::vector<int32_t> counts = thread_counts(flags.n_threads, machine.n_physical);
  cpu::ReadMeter normal(n_bytes, /*huge_pages=*/false, counts.back());
  std::optional<cpu::ReadMeter> huge;
  if (machine.has_huge_pages) huge.emplace(n_bytes, /*huge_pages=*/true, counts.back());
  std::vector<Measured> all;
  for (const int32_t n_threads : counts) {
    all.emplace_back(&normal, "normal", n_threads);
    if (huge) all.emplace_back(&*huge, "huge", n_threads);
  }
  const size_t n_series = all.size() * (1 + all[0].gathered.size());
  const double each = static_cast<double>(flags.seconds) / static_cast<double>(kRounds * n_series);
  for (int round = 0; round < kRounds; ++round) {
    if (stderr_is_terminal()) write_stderr(cat("\rround ", round + 1, " of ", kRounds, " "));
    for (Measured& measured : all) measured.visit(each);
  }
  if (stderr_is_terminal()) write_stderr("\r\033[K");
  std::vector<ReadRates> out;
  for (const Measured& measured : all) out.push_back(measured.rates());
  return out;
}

MachineRates measure(const MachineBenchFlags& flags) {
  const Machine machine = probe_machine();
  MachineRates rates;
  rates.cpu = machine.cpu;
  rates.n_cores = machine.n_physical;
  rates.memory_bytes = machine.memory_bytes;
  rates.cache_bytes = machine.cache_bytes;
  rates.buffer_bytes = buffer_bytes(machine);
  rates.gpu_reason = kGpuReason;
  rates.read = measure_reads(machine, rates.buffer_bytes, flags);
  return rates;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

double rounded(double gbps) { return static_cast<double>(static_cast<int64_t>(gbps * 1000 + 0.5)) / 1000; }

// The document of docs/FORMATS.md, "machine.json".
std::string json_document(const MachineRates& rates) {
  JsonWriter json;
  json.begin_object().field("format", "hotset-machine").field("version", kMachineRatesVersion);
  json.field("created", utc_now()).field("build_commit", build_commit());
  json.key("hardware").begin_object().key("cpu");
  rates.cpu.empty() ? json.null() : json.value(rates.cpu);
  json.field("n_cores", rates.n_cores).field("memory_bytes", rates.memory_bytes);
  json.field("cache_bytes", rates.cache_bytes).end_object();
  json.field("buffer_bytes", rates.buffer_bytes).key("read").begin_array();
  for (const ReadRates& read : rates.read) {
    json.begin_object().field("pages", read.pages).field("n_threads", read.n_threads);
    json.field("dense_gbps", rounded(read.dense_gbps)).field("dense_streams", read.dense_streams);
    json.key("gathered").begin_array();
    for (const GatheredRate& rate : read.gathered) {
      json.begin_object().field("row_bytes", rate.row_bytes).field("density", rate.density);
      json.field("gbps", rounded(rate.gbps))
          .field("streams", rate.streams)
          .field("ahead_rows", rate.ahead_rows)
          .end_object();
    }
    json.end_array().end_object();
  }
  json.end_array().key("gpu").null().key("pcie").null().key("handoff_us").null();
  json.field("gpu_reason", rates.gpu_reason).end_object();
  return json.text() + "\n";
}

std::string table(const MachineRates& rates) {
  std::string out = cat("machine  ", rates.cpu.empty() ? "unknown" : printable(rates.cpu), ", ", rates.n_cores,
                        " cores, ", bytes_text(rates.cache_bytes), " of last-level cache\n");
  out += cat("buffer   ", bytes_text(rates.buffer_bytes), "\ngpu      not measured: ", rates.gpu_reason, "\n");
  out += "\nGB/s of dense reads, and of whole rows of which a share is read, at random and in ascending order\n\n";
  out += "| pages  | threads |  dense | row bytes |";
  for (const double density : kDensities) out += text_of(" %5.0f %% |", 100 * density);
  out += "\n| ------ | ------: | -----: | --------: |";
  for (size_t i = 0; i < std::size(kDensities); ++i) out += " ------: |";
  for (const ReadRates& read : rates.read) {
    for (size_t i = 0; i < read.gathered.size(); ++i) {
      const bool starts_row = i % std::size(kDensities) == 0;
      if (starts_row) {
        out += text_of("\n| %-6s | %7d | %6.2f | %9lld |", read.pages.c_str(), read.n_threads, read.dense_gbps,
                       static_cast<long long>(read.gathered[i].row_bytes));
      }
      out += text_of(" %7.2f |", read.gathered[i].gbps);
    }
  }
  return out + "\n";
}

// The place for the file; its folder is made when it is the default one.
std::string target_path(const MachineBenchFlags& flags) {
  if (!flags.path.empty()) return flags.path;
  const std::string path = machine_rates_path();
  if (path.empty()) {
    throw Error(error_text("bench", "cache folder", "HOME or XDG_CACHE_HOME", "neither", "name a file with -o"));
  }
  std::error_code ignored;  // opening the file tells
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  return path;
}

}  // namespace

int bench_machine(const MachineBenchFlags& flags) {
  const std::string path = target_path(flags);
  OutputFile file(path);  // before the minute of measuring
  const MachineRates rates = measure(flags);
  const std::string document = json_document(rates);
  file.write(document.data(), document.size());
  file.finish();
  if (path != "-") write_stdout(flags.as_json ? document : table(rates));
  if (path != "-") write_note("wrote " + path);
  return kExitDone;
}

}  // namespace hotset::cli
