// How fast a model is brought to a device and an arena, against plain copies of as many bytes by as many threads.
//
//   bench_load MODEL.gguf [percent hot] [threads] [rounds]     neuron-major; the file should be in the page cache
//
// The device is the virtual one, whose memory is the host's. Copies are made of the mapped file, to memory that is
// there already (what the machine can do at best) and to new large pages (what whoever loads must pay).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "core/arena.h"
#include "core/devices.h"
#include "core/gguf.h"
#include "core/mmap_file.h"
#include "core/model.h"
#include "core/thread_pool.h"
#include "core/weight_placer.h"
#include "core/weights.h"

namespace {

using namespace hotset;
using Order = std::vector<std::vector<int32_t>>;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void copy(ThreadPool& pool, std::byte* to, const std::byte* from, size_t n_bytes) {
  constexpr size_t kPiece = size_t{1} << 20;
  std::atomic<size_t> next{0};
  pool.run([&](int32_t) {
    for (size_t at = kPiece * next++; at < n_bytes; at = kPiece * next++)
      std::memcpy(to + at, from + at, std::min(kPiece, n_bytes - at));
  });
}

Order shuffled_units(const Model& model) {
  std::mt19937_64 random(1);
  const ModelConfig& config = model.config();
  Order out(static_cast<size_t>(config.n_layer), std::vector<int32_t>(static_cast<size_t>(config.n_ff)));
  for (auto& layer : out) {
    std::iota(layer.begin(), layer.end(), 0);
    std::shuffle(layer.begin(), layer.end(), random);
  }
  return out;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Bench {
  std::shared_ptr<const Model> model;
  std::shared_ptr<const MmapFile> file;
  Placement placement;
  int32_t n_threads;

  // One line: medians of loading and of both copies, by turns.
  void run(const char* name, const Order& order, int n_rounds) const {
    ThreadPool pool(n_threads);
    std::vector<double> load, warm, fresh;
    size_t n_bytes = 0;
    for (int i = 0; i < n_rounds; ++i) {
      {
        const auto card = make_virtual_device({});
        const WeightPlacer placed(*model, Relayout::outline(*model), placement, order, *card,
                                  {.n_threads = n_threads, .copies_cold = true});
        load.push_back(placed.seconds());
        n_bytes = placed.device_bytes() + placed.arena_bytes();
      }
      n_bytes = std::min(n_bytes, file->size());
      file->drop_pages(file->data(), file->size());
      fresh.push_back(seconds_of([&] {
        const Arena arena(n_bytes, Pages::kHuge);
        copy(pool, arena.data(), file->data(), n_bytes);
      }));
      const Arena arena(n_bytes, Pages::kHuge);
      copy(pool, arena.data(), file->data(), n_bytes);
      warm.push_back(seconds_of([&] { copy(pool, arena.data(), file->data(), n_bytes); }));
    }
    const double gb = static_cast<double>(n_bytes) / 1e9;
    std::printf("%-16s %5.2f GB  load %5.2f GB/s  copy %5.2f GB/s (%3.0f %%)  to new pages %5.2f GB/s (%3.0f %%)\n",
                name, gb, gb / median(load), gb / median(warm), 100 * median(warm) / median(load), gb / median(fresh),
                100 * median(fresh) / median(load));
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: bench_load MODEL.gguf [percent hot] [threads] [rounds]\n"), 2;
  const int64_t percent = argc > 2 ? std::clamp(std::atol(argv[2]), 0L, 100L) : 50;
  const int32_t n_threads = argc > 3 ? static_cast<int32_t>(std::clamp(std::atol(argv[3]), 1L, 256L)) : 2;
  const int n_rounds = argc > 4 ? static_cast<int>(std::max(1L, std::atol(argv[4]))) : 5;
  Bench bench{Model::load(argv[1]), MmapFile::open(argv[1]), {}, n_threads};
  const int64_t n_ff = bench.model->config().n_ff;
  bench.placement.layers.assign(static_cast<size_t>(bench.model->config().n_layer),
                                {n_ff * percent / 100, DetectPlace::kDevice, Place::kDevice});
  bench.placement.head = Place::kDevice;
  bench.run("slots are units", {}, n_rounds);
  bench.run("shuffled", shuffled_units(*bench.model), n_rounds);
  return 0;
}
