#include "core/profile.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <queue>

#include "core/plan.h"
#include "core/profile_counters.h"
#include "core/quantize.h"
#include "core/synth_random.h"
#include "core/thread_pool.h"
#include "core/topology.h"
#include "core/weights.h"

namespace hotset {
namespace {

constexpr char kWhere[] = "profile";
constexpr int64_t kMostSamples = int64_t{1} << 24;

// Sums of squares of each unit's outgoing weights.
std::vector<double> squares_of_rows(const TensorView& down_t, ThreadPool& pool) {
  std::vector<double> out(static_cast<size_t>(down_t.n_rows));
  std::atomic<int64_t> next{0};
  pool.run([&](int32_t) {
    std::vector<float> row(static_cast<size_t>(down_t.n_cols));
    for (int64_t unit = next++; unit < down_t.n_rows; unit = next++) {
      dequantize_row(down_t.dtype, down_t.row(unit), down_t.n_cols, row.data());
      for (const float weight : row)
        out[static_cast<size_t>(unit)] += static_cast<double>(weight) * static_cast<double>(weight);
    }
  });
  return out;
}

// The same where a unit is a column: each worker takes columns of its own, whole blocks of every type.
std::vector<double> squares_of_columns(const TensorView& down, ThreadPool& pool) {
  constexpr int64_t kColumns = 256;
  std::vector<double> out(static_cast<size_t>(down.n_cols));
  std::atomic<int64_t> next{0};
  pool.run([&](int32_t) {
    float part[kColumns];
    for (int64_t first = kColumns * next++; first < down.n_cols; first = kColumns * next++) {
      const int64_t n = std::min(kColumns, down.n_cols - first);
      for (int64_t row = 0; row < down.n_rows; ++row) {
        dequantize_row(down.dtype, down.row(row) + row_bytes(down.dtype, first), n, part);
        for (int64_t i = 0; i < n; ++i)
          out[static_cast<size_t>(first + i)] += static_cast<double>(part[i]) * static_cast<double>(part[i]);
      }
    }
  });
  return out;
}

std::vector<std::vector<double>> lengths_of_down_rows(const Weights& weights, int32_t n_threads) {
  ThreadPool pool(n_threads);
  std::vector<std::vector<double>> out;
  for (const LayerWeights& layer : weights.layers) {
    out.push_back(layer.ffn_down_t ? squares_of_rows(layer.ffn_down_t.view, pool)
                                   : squares_of_columns(layer.ffn_down.view, pool));
    for (double& square : out.back()) square = std::sqrt(square);
  }
  return out;
}

// Which tokens are in the sample: the n whose numbers scatter to the smallest values.
class SampleChooser {
 public:
  explicit SampleChooser(size_t n) : n_(n) {}
  // The place in the sample that a token takes, its earlier holder's perhaps; -1 for none. Tokens come in order.
  int64_t place(uint64_t token) {
    const uint64_t key = scattered(token + 1);
    if (kept_.size() == n_ && (n_ == 0 || kept_.top().first < key)) return -1;
    size_t place = kept_.size();
    if (place == n_) place = kept_.top().second, kept_.pop();
    kept_.push({key, place});
    return static_cast<int64_t>(place);
  }

 private:
  size_t n_;
  std::priority_queue<std::pair<uint64_t, size_t>> kept_;  // (key, place), the largest key on top
};

void check_tokens(std::span<const std::vector<int32_t>> sequences) {
  for (const std::vector<int32_t>& sequence : sequences)
    if (sequence.empty())
      throw std::invalid_argument(
          error_text(kWhere, "sequence", "at least one token", "none", "leave empty texts out"));
}

}  // namespace

struct Profiler::Impl {
  std::shared_ptr<const Model> model;
  int64_t n_samples;
  std::vector<std::vector<double>> norms;
  std::unique_ptr<ProfileCounters> counters;  // outlives the engine
  std::shared_ptr<Engine> engine;
  EngineOptions options;  // that it was made with
  ProfileState state;
  SampleChooser chooser{0};
  bool needs_thresholds;

  size_t n_embd() const { return static_cast<size_t>(model->config().n_embd); }
  size_t n_ff() const { return static_cast<size_t>(model->config().n_ff); }
  size_t mask_bytes() const { return (n_ff() + 7) / 8; }
  void check_samples() const;
  PassSample choose(size_t n_tokens, SampleChooser& next, std::vector<std::pair<size_t, uint64_t>>& taken) const;
  void commit(const PassSample& sample, const std::vector<std::pair<size_t, uint64_t>>& taken);
};

void Profiler::Impl::check_samples() const {
  if (n_samples < 0 || n_samples > kMostSamples)
    throw std::invalid_argument(error_text(kWhere, "samples", cat("0 to ", kMostSamples), cat(n_samples),
                                           "pass a number in that range"));
  const uint64_t n_bytes = static_cast<uint64_t>(n_samples) * norms.size() * (4 * n_embd() + mask_bytes());
  const uint64_t n_free = available_memory_bytes();
  if (n_free > 0 && n_bytes > n_free)
    throw std::invalid_argument(error_text(kWhere, cat("memory for ", n_samples, " samples"),
                                           cat("at most ", n_free, " bytes, which are free"), cat(n_bytes),
                                           "ask for fewer samples"));
}

void run_sequences(const std::shared_ptr<Engine>& engine, const EngineOptions& options,
                   std::span<const std::vector<int32_t>> sequences, const StopCheck& stop) {
  constexpr int64_t kBlock = KvLayout::kBlockPositions;
  const auto blocks = [](int64_t n_positions) { return (n_positions + kBlock - 1) / kBlock; };
  const EngineInfo info = engine->info();
  const int64_t n_sequences = info.device == "cpu" ? options.n_sequences : std::max(options.n_sequences, 1);
  const int64_t n_most = n_sequences > 0 ? n_sequences * blocks(info.n_ctx) : INT64_MAX;
  for (size_t begin = 0, end = 0; begin < sequences.size(); begin = end) {
    std::vector<Session> sessions;
    std::vector<Engine::Entry> entries;
    for (int64_t n = 0; end < sequences.size(); ++end) {
      n += blocks(static_cast<int64_t>(sequences[end].size()));
      if (end > begin && n > n_most) break;
      sessions.push_back(engine->open_session());
    }
    for (size_t i = begin; i < end; ++i) entries.push_back({&sessions[i - begin], sequences[i]});
    engine->advance(entries, stop);
  }
}

// Decides which of the next tokens are kept; `taken` gets the place and number of each, in order of their stage. A
// token whose place a later one of the pass takes is not kept at all.
PassSample Profiler::Impl::choose(size_t n_tokens, SampleChooser& next,
                                  std::vector<std::pair<size_t, uint64_t>>& taken) const {
  PassSample out;
  out.staged.layers.resize(norms.size());
  if (n_samples == 0) return out;
  std::vector<int64_t> places(n_tokens);
  std::vector<int64_t> last_of_place(static_cast<size_t>(n_samples), -1);
  for (size_t i = 0; i < n_tokens; ++i) {
    places[i] = next.place(state.n_tokens + i);
    if (places[i] >= 0) last_of_place[static_cast<size_t>(places[i])] = static_cast<int64_t>(i);
  }
  out.stage_of_row.assign(n_tokens, -1);
  for (size_t i = 0; i < n_tokens; ++i) {
    if (places[i] < 0 || last_of_place[static_cast<size_t>(places[i])] != static_cast<int64_t>(i)) continue;
    out.stage_of_row[i] = static_cast<int32_t>(taken.size());
    taken.push_back({static_cast<size_t>(places[i]), state.n_tokens + i});
  }
  for (ProfileSamples::Layer& layer : out.staged.layers) {
    layer.input.resize(taken.size() * n_embd());
    layer.mask.resize(taken.size() * mask_bytes());
  }
  return out;
}

void Profiler::Impl::commit(const PassSample& sample, const std::vector<std::pair<size_t, uint64_t>>& taken) {
  ProfileSamples& to = state.samples;
  for (size_t stage = 0; stage < taken.size(); ++stage) {
    const auto [place, token] = taken[stage];
    to.tokens[place] = token;
    for (size_t layer = 0; layer < to.layers.size(); ++layer) {
      const ProfileSamples::Layer& from = sample.staged.layers[layer];
      std::copy_n(from.input.data() + stage * n_embd(), n_embd(), to.layers[layer].input.data() + place * n_embd());
      std::copy_n(from.mask.data() + stage * mask_bytes(), mask_bytes(),
                  to.layers[layer].mask.data() + place * mask_bytes());
    }
  }
}

Profiler::Profiler(std::shared_ptr<const Model> model, const EngineOptions& options, int64_t n_samples)
    : impl_(std::make_unique<Impl>()) {
  impl_->model = std::move(model);
  impl_->n_samples = n_samples;
  const ModelConfig& config = impl_->model->config();
  impl_->needs_thresholds = !is_sparse(config.activation);
  impl_->norms.resize(static_cast<size_t>(config.n_layer));
  impl_->check_samples();
  const Topology topology = read_topology();
  const int32_t n_threads = options.n_threads > 0 ? options.n_threads : topology.default_threads();
  impl_->norms = lengths_of_down_rows(impl_->model->weights(), std::clamp(n_threads, 1, topology.n_processors));
  impl_->counters = std::make_unique<ProfileCounters>(config, impl_->norms);
  EngineOptions dense = options;
  dense.mode = "dense";
  dense.observer = impl_->counters.get();
  impl_->engine = Engine::create(impl_->model, dense);
  impl_->options = dense;
  impl_->state.layers.resize(impl_->norms.size());
  for (LayerProfile& layer : impl_->state.layers)
    layer.counts.resize(impl_->n_ff()), layer.h_sums.resize(impl_->n_ff());
  impl_->state.samples.layers.resize(impl_->norms.size());
  impl_->chooser = SampleChooser(static_cast<size_t>(n_samples));
}

Profiler::~Profiler() = default;

void Profiler::calibrate(std::span<const std::vector<int32_t>> sequences, double share, const StopCheck& stop) {
  if (!impl_->needs_thresholds) return;
  if (!(share >= 0 && share <= 0.5))
    throw std::invalid_argument(error_text(kWhere, "share of the contributions below the threshold", "0 to 0.5",
                                           cat(share), "pass a number in that range"));
  if (impl_->state.n_tokens > 0 || sequences.empty())
    throw std::invalid_argument(error_text(kWhere, "calibration", "some tokens, before any is counted",
                                           sequences.empty() ? "none" : "counts", "calibrate first"));
  check_tokens(sequences);
  std::vector<ContributionHistogram> histograms(impl_->norms.size());
  impl_->counters->begin_calibration(histograms);
  run_sequences(impl_->engine, impl_->options, sequences, stop);
  for (size_t layer = 0; layer < histograms.size(); ++layer)
    impl_->state.layers[layer].threshold = histograms[layer].threshold(share);
}

void Profiler::add(std::span<const std::vector<int32_t>> sequences, const StopCheck& stop) {
  Impl& impl = *impl_;
  check_tokens(sequences);
  if (impl.needs_thresholds && impl.state.layers[0].threshold == 0)
    throw std::invalid_argument(error_text(kWhere, "thresholds of an activation without exact zeros",
                                           "calibrated ones", "none", "call calibrate first"));
  size_t n_tokens = 0;
  for (const std::vector<int32_t>& sequence : sequences) n_tokens += sequence.size();
  if (n_tokens == 0) return;
  std::vector<std::pair<size_t, uint64_t>> taken;
  SampleChooser chooser = impl.chooser;
  PassSample sample = impl.choose(n_tokens, chooser, taken);
  std::vector<LayerProfile> layers = impl.state.layers;
  impl.counters->begin_pass(layers, sample);
  run_sequences(impl.engine, impl.options, sequences, stop);
  impl.counters->end_pass();
  // The sample grows to its size with the first tokens; from here on only a lack of memory for that could fail.
  const size_t n_kept = std::min<size_t>(static_cast<size_t>(impl.n_samples), impl.state.n_tokens + n_tokens);
  impl.state.samples.tokens.resize(n_kept);
  for (ProfileSamples::Layer& layer : impl.state.samples.layers)
    layer.input.resize(n_kept * impl.n_embd()), layer.mask.resize(n_kept * impl.mask_bytes());
  impl.commit(sample, taken);
  impl.chooser = std::move(chooser);
  impl.state.layers.swap(layers);
  impl.state.n_tokens += n_tokens;
}

const ProfileState& Profiler::state() const { return impl_->state; }

const std::vector<std::vector<double>>& Profiler::down_norms() const { return impl_->norms; }

void Profiler::restore(ProfileState state) {
  const auto expect = [](bool ok, const char* what) {
    if (!ok)
      throw std::invalid_argument(error_text(kWhere, "saved state", "one of this model and number of samples",
                                             cat("another ", what), "begin anew"));
  };
  const size_t n_kept = std::min<uint64_t>(static_cast<uint64_t>(impl_->n_samples), state.n_tokens);
  expect(state.layers.size() == impl_->norms.size(), "number of layers");
  expect(state.samples.layers.size() == impl_->norms.size(), "number of layers");
  expect(state.samples.tokens.size() == n_kept, "number of samples");
  for (const LayerProfile& layer : state.layers) {
    expect(layer.counts.size() == impl_->n_ff() && layer.h_sums.size() == impl_->n_ff(), "number of units");
    expect(std::isfinite(layer.threshold) && (layer.threshold > 0) == impl_->needs_thresholds, "threshold");
    for (const uint64_t count : layer.counts) expect(count <= state.n_tokens, "count");
    for (const double sum : layer.h_sums) expect(std::isfinite(sum) && sum >= 0, "sum of |h|");
  }
  for (const ProfileSamples::Layer& layer : state.samples.layers)
    expect(layer.input.size() == n_kept * impl_->n_embd() && layer.mask.size() == n_kept * impl_->mask_bytes(),
           "size of samples");
  // Which tokens have which place follows from their number.
  SampleChooser chooser(static_cast<size_t>(impl_->n_samples));
  std::vector<uint64_t> tokens(n_kept);
  for (uint64_t token = 0; impl_->n_samples > 0 && token < state.n_tokens; ++token)
    if (const int64_t place = chooser.place(token); place >= 0) tokens[static_cast<size_t>(place)] = token;
  expect(tokens == state.samples.tokens, "sample of tokens");
  impl_->chooser = std::move(chooser);
  impl_->state = std::move(state);
}

}  // namespace hotset
