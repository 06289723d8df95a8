// Profiles: what is counted equals a count by hand of what the engine computes, whatever the threads, the batch and the
// cut into calls, and a failure leaves everything as it was.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/profile.h"
#include "core/synth_random.h"
#include "core/weights.h"
#include "cpu/cpu_program.h"
#include "cpu/reference.h"
#include "tests/cpp/sanitizers.h"
#include "tests/cpp/unit_recorder.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Sequences = std::vector<std::vector<int32_t>>;

// Lengths around the batch of 16 and of 1.
Sequences some_sequences() {
  Sequences out;
  for (const size_t n : {1, 40, 16, 7, 33, 2}) out.push_back(random_tokens(20 + n, n, 270));
  return out;
}

TinySpec spec_of(Activation activation, bool neuron_major) {
  return {.arch = activation == Activation::kRelu2 ? "arcee" : "llama", .n_embd = 50, .n_ff = 141, .head_dim = 14,
          .n_rot = 6, .n_ctx = 96, .neuron_major = neuron_major, .activation = activation, .biases = true};
}

// Lengths of the down rows, from the definition.
std::vector<std::vector<double>> slow_norms(const Model& model) {
  std::vector<std::vector<double>> out;
  for (const LayerWeights& layer : model.weights().layers) {
    const bool is_row = static_cast<bool>(layer.ffn_down_t);
    const TensorView& down = is_row ? layer.ffn_down_t.view : layer.ffn_down.view;
    const auto type = static_cast<cpu::WeightType>(cpu::weight_type(down.dtype));
    std::vector<double> squares(static_cast<size_t>(model.config().n_ff));
    for (int64_t row = 0; row < down.n_rows; ++row)
      for (int64_t i = 0; i < down.n_cols; ++i)
        squares[static_cast<size_t>(is_row ? row : i)] +=
            std::pow(cpu::reference::weight_at(type, down.row(row), i), 2);
    for (double& each : squares) each = std::sqrt(each);
    out.push_back(squares);
  }
  return out;
}

// Counts by hand what a recorder has seen.
ProfileState slow_profile(const Model& model, const UnitRecorder& seen, const std::vector<float>& thresholds) {
  ProfileState out;
  out.n_tokens = seen.n_rows;
  const std::vector<std::vector<double>> norms = slow_norms(model);
  for (size_t layer = 0; layer < seen.layers.size(); ++layer) {
    LayerProfile counted{std::vector<uint64_t>(seen.n_ff()), std::vector<double>(seen.n_ff()), 0, thresholds[layer]};
    std::vector<bool> before(seen.n_ff());
    for (size_t row = 0; row < seen.n_rows; ++row)
      for (size_t unit = 0; unit < seen.n_ff(); ++unit) {
        const size_t at = row * seen.n_ff() + unit;
        const float h = std::fabs(seen.layers[layer].h[at]);
        const bool active = thresholds[layer] == 0
                                ? !(seen.layers[layer].detected[at] <= 0)
                                : h * static_cast<float>(norms[layer][unit]) >= thresholds[layer];
        counted.counts[unit] += active;
        counted.h_sums[unit] += static_cast<double>(h);
        counted.overlap += active && before[unit] && seen.positions[row] > 0;
        before[unit] = active;
      }
    out.layers.push_back(counted);
  }
  return out;
}

void check_equal(const ProfileState& got, const ProfileState& expected) {
  CHECK(got.n_tokens == expected.n_tokens);
  REQUIRE(got.layers.size() == expected.layers.size());
  for (size_t layer = 0; layer < got.layers.size(); ++layer) {
    CHECK(got.layers[layer].counts == expected.layers[layer].counts);
    CHECK(got.layers[layer].h_sums == expected.layers[layer].h_sums);
    CHECK(got.layers[layer].overlap == expected.layers[layer].overlap);
    CHECK(got.layers[layer].threshold == expected.layers[layer].threshold);
  }
}

void check_equal_samples(const ProfileSamples& got, const ProfileSamples& expected) {
  CHECK(got.tokens == expected.tokens);
  REQUIRE(got.layers.size() == expected.layers.size());
  for (size_t layer = 0; layer < got.layers.size(); ++layer) {
    CHECK(got.layers[layer].input == expected.layers[layer].input);
    CHECK(got.layers[layer].mask == expected.layers[layer].mask);
  }
}

std::vector<float> thresholds_of(const ProfileState& state) {
  std::vector<float> out;
  for (const LayerProfile& layer : state.layers) out.push_back(layer.threshold);
  return out;
}

// Runs all sequences in one pass past a recorder.
void record(const std::shared_ptr<const Model>& model, const Sequences& sequences, UnitRecorder& seen) {
  const auto engine = Engine::create(model, {.n_threads = 1, .observer = &seen});
  for (const std::vector<int32_t>& sequence : sequences) engine->open_session().prefill(sequence);
}

TEST_CASE("profile: counts, sums and overlap are those of a count by hand") {
  const Sequences sequences = some_sequences();
  for (const Activation activation : {Activation::kRelu, Activation::kRelu2, Activation::kDRelu, Activation::kSilu})
    for (const bool neuron_major : {true, false}) {
      CAPTURE(activation_name(activation));
      CAPTURE(neuron_major);
      const auto model = load_tiny(spec_of(activation, neuron_major));
      UnitRecorder seen(model->config());
      record(model, sequences, seen);
      ProfileState expected;
      for (const std::string& isa : isas())
        for (const int32_t n_threads : {1, 2, 3, 16})
          for (const int32_t n_batch : {1, 16, 512})
            for (const size_t each : {1, 4, 6}) {  // sequences given at a time
              if ((n_threads > 2 || n_batch == 1 || kThreadsOnly) && isa != isas().back()) continue;
              if (kFewCases && (n_threads == 3 || each == 4)) continue;
              Profiler profiler(model, {.n_threads = n_threads, .n_batch = n_batch, .isa = isa}, 0);
              profiler.calibrate(std::span(sequences).first(3), 0.02);
              for (size_t at = 0; at < sequences.size(); at += each)
                profiler.add(std::span(sequences).subspan(at, std::min(each, sequences.size() - at)));
              if (expected.layers.empty()) {
                expected = slow_profile(*model, seen, thresholds_of(profiler.state()));
                const std::vector<uint64_t>& counts = expected.layers[1].counts;
                CHECK(std::accumulate(counts.begin(), counts.end(), uint64_t{0}) > 500);
                CHECK(expected.layers[1].overlap > 100);
                const std::vector<std::vector<double>> norms = slow_norms(*model);
                for (size_t i = 0; i < 2 * 141; ++i) {
                  const double norm = profiler.down_norms()[i / 141][i % 141];
                  CHECK(norm == doctest::Approx(norms[i / 141][i % 141]).epsilon(1e-12));
                }
              }
              check_equal(profiler.state(), expected);
            }
    }
}

TEST_CASE("profile: the threshold leaves the asked share of the contributions below it") {
  const auto model = load_tiny(spec_of(Activation::kSilu, true));
  const Sequences sequences = some_sequences();
  UnitRecorder seen(model->config());
  record(model, sequences, seen);
  const std::vector<std::vector<double>> norms = slow_norms(*model);
  for (const double share : {0.0, 0.01, 0.1, 0.5}) {
    CAPTURE(share);
    Profiler profiler(model, {.n_threads = 2}, 0);
    CHECK_THROWS_AS(profiler.add(sequences), std::invalid_argument);  // not calibrated
    profiler.calibrate(sequences, share);
    for (size_t layer = 0; layer < 2; ++layer) {
      double below = 0, total = 0;
      for (size_t i = 0; i < seen.layers[layer].h.size(); ++i) {
        const float value = std::fabs(seen.layers[layer].h[i]) * static_cast<float>(norms[layer][i % 141]);
        total += static_cast<double>(value);
        if (value < profiler.state().layers[layer].threshold) below += static_cast<double>(value);
      }
      // Bins are 1/32 octave wide and taken at their middle: 1.1 % either way, and one bin may stay out.
      CHECK(below <= share * total * 1.011);
      CHECK(below >= share * total * 0.9);
    }
  }
  Profiler profiler(model, {.n_threads = 1}, 0);
  for (const double share : {-0.1, 0.51, std::nan("")})
    CHECK_THROWS_AS(profiler.calibrate(sequences, share), std::invalid_argument);
  CHECK_THROWS_AS(profiler.calibrate({}, 0.1), std::invalid_argument);
}

TEST_CASE("profile: the sample holds the tokens whose numbers scatter lowest, with their inputs and active units") {
  const auto model = load_tiny(spec_of(Activation::kRelu, true));
  const Sequences sequences = some_sequences();
  UnitRecorder seen(model->config());
  record(model, sequences, seen);
  for (const int64_t n_samples : {1, 10, 99, 500}) {
    CAPTURE(n_samples);
    ProfileSamples expected;
    for (const int32_t n_threads : {1, 3})
      for (const size_t each : {1, 4, 6}) {
        Profiler profiler(model, {.n_threads = n_threads, .n_batch = 16}, n_samples);
        for (size_t at = 0; at < sequences.size(); at += each)
          profiler.add(std::span(sequences).subspan(at, std::min(each, sequences.size() - at)));
        const ProfileSamples& got = profiler.state().samples;
        if (expected.layers.empty()) expected = got;
        check_equal_samples(got, expected);
      }
    std::set<std::pair<uint64_t, uint64_t>> keys;
    for (uint64_t token = 0; token < seen.n_rows; ++token) keys.insert({scattered(token + 1), token});
    std::set<uint64_t> tokens;
    for (const auto& [key, token] : keys)
      if (tokens.size() < static_cast<size_t>(n_samples)) tokens.insert(token);
    REQUIRE(std::set<uint64_t>(expected.tokens.begin(), expected.tokens.end()) == tokens);
    REQUIRE(expected.tokens.size() == tokens.size());
    for (size_t layer = 0; layer < 2; ++layer)
      for (size_t i = 0; i < expected.tokens.size(); ++i) {
        const size_t row = expected.tokens[i];
        const float* const input = seen.layers[layer].in.data() + row * 50;
        CHECK(std::equal(input, input + 50, expected.layers[layer].input.data() + i * 50));
        std::vector<uint8_t> mask(18);
        for (size_t unit = 0; unit < 141; ++unit)
          if (seen.layers[layer].detected[row * 141 + unit] > 0) mask[unit / 8] |= static_cast<uint8_t>(1 << unit % 8);
        CHECK(std::equal(mask.begin(), mask.end(), expected.layers[layer].mask.data() + i * 18));
      }
  }
}

TEST_CASE("profile: restored, it goes on as if it had never stopped; what was never a state is refused") {
  const Sequences sequences = some_sequences();
  for (const Activation activation : {Activation::kRelu, Activation::kSilu}) {
    const auto model = load_tiny(spec_of(activation, true));
    Profiler whole(model, {.n_threads = 2}, 20);
    whole.calibrate(sequences, 0.02);
    Profiler first(model, {.n_threads = 1}, 20), second(model, {.n_threads = 2}, 20);
    first.calibrate(sequences, 0.02);
    for (size_t i = 0; i < sequences.size(); ++i) {
      whole.add({&sequences[i], 1});
      if (i < 3) first.add({&sequences[i], 1});
    }
    second.restore(first.state());
    second.add(std::span(sequences).subspan(3));
    check_equal(second.state(), whole.state());
    check_equal_samples(second.state().samples, whole.state().samples);
    const auto refuses = [&](auto change) {
      ProfileState state = first.state();
      change(state);
      CHECK_THROWS_AS(second.restore(state), std::invalid_argument);
      check_equal(second.state(), whole.state());
    };
    refuses([](ProfileState& s) { s.layers.pop_back(); });
    refuses([](ProfileState& s) { s.layers[1].counts.pop_back(); });
    refuses([](ProfileState& s) { s.layers[1].h_sums.pop_back(); });
    refuses([](ProfileState& s) { s.layers[1].counts[3] = s.n_tokens + 1; });
    refuses([](ProfileState& s) { s.layers[0].h_sums[3] = NAN; });
    refuses([](ProfileState& s) { s.layers[0].threshold = s.layers[0].threshold > 0 ? 0 : 1; });
    refuses([](ProfileState& s) { s.samples.tokens[0] += 1; });
    refuses([](ProfileState& s) { s.samples.layers[0].mask.pop_back(); });
    refuses([](ProfileState& s) { s.samples.layers[1].input.pop_back(); });
    refuses([](ProfileState& s) { s.samples.layers.clear(); });
    refuses([](ProfileState& s) { s.n_tokens = 5; });
  }
}

TEST_CASE("profile: a NaN, a stop and a bad token leave what was counted as it was") {
  GgufWriter writer = tiny_writer(spec_of(Activation::kRelu, true));
  std::string& table = writer.tensor("token_embd.weight").data;
  const float nan = NAN;
  std::memcpy(table.data() + 200 * 50 * sizeof(float), &nan, sizeof nan);  // of token 200 only
  const auto model = load_bytes(writer.bytes());
  Sequences good{{5, 6, 7}, {8}}, bad{{9, 10}, {11, 200}};
  Profiler profiler(model, {.n_threads = 2}, 3);
  profiler.add(good);
  const ProfileState before = profiler.state();
  CHECK_THROWS_WITH_AS(profiler.add(bad), doctest::Contains("activation of layer 0, unit "), Error);
  CHECK_THROWS_AS(profiler.add(Sequences{{9, 10}}, [] { return true; }), CancelledError);
  CHECK_THROWS_AS(profiler.add(Sequences{{9}, {-1}}), std::invalid_argument);
  CHECK_THROWS_AS(profiler.add(Sequences{{9}, {}}), std::invalid_argument);
  CHECK_THROWS_AS(profiler.add(Sequences{std::vector<int32_t>(97, 5)}), ContextLengthError);
  check_equal(profiler.state(), before);
  check_equal_samples(profiler.state().samples, before.samples);
  bad[1][1] = 12;
  profiler.add({});
  profiler.add(bad);
  Profiler other(model, {.n_threads = 1}, 3);
  other.add(good), other.add(bad);
  check_equal(profiler.state(), other.state());
  check_equal_samples(profiler.state().samples, other.state().samples);
}

TEST_CASE("profile: samples beyond the memory are refused before it is taken") {
  const auto model = load_tiny({.seed = 5});
  for (const int64_t n : {int64_t{-1}, int64_t{1} << 40})
    CHECK_THROWS_AS(Profiler(model, {}, n), std::invalid_argument);
}

}  // namespace
