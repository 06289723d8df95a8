// The engine: right logits, and the same bits whatever the threads, the instruction set, the batch and the company.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "core/error.h"
#include "core/weights.h"
#include "tests/cpp/sanitizers.h"
#include "tests/cpp/slow_model.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;
using Logits = std::vector<float>;

Logits copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

Session open_with(const std::shared_ptr<Engine>& engine, const Ids& ids) {
  Session session = engine->open_session();
  session.prefill(ids);
  return session;
}

// Logits of every position, the tokens given in pieces of `piece`.
Logits all_logits(const std::shared_ptr<Engine>& engine, const Ids& ids, size_t piece) {
  Session session = engine->open_session();
  Logits out;
  for (size_t at = 0; at < ids.size(); at += piece) {
    const Engine::Entry entry{&session, std::span(ids).subspan(at, std::min(piece, ids.size() - at)), true};
    engine->advance({&entry, 1});
    out.insert(out.end(), session.all_logits().begin(), session.all_logits().end());
  }
  return out;
}

Logits all_logits(const std::shared_ptr<const Model>& model, const EngineOptions& options, const Ids& ids) {
  return all_logits(Engine::create(model, options), ids, ids.size());
}

double worst_nmse(const std::shared_ptr<const Model>& model, const EngineOptions& options, const Ids& ids) {
  const Logits got = all_logits(model, options, ids);
  SlowModel slow(*model);
  double worst = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::vector<double> expected = slow.step(ids[i]);
    worst = std::max(worst, nmse(std::span(got).subspan(i * expected.size(), expected.size()), expected));
  }
  return worst;
}

TEST_CASE("engine: logits agree with a forward pass in double") {
  const TinySpec specs[] = {
      {},
      {.activation = Activation::kSilu},
      {.neuron_major = false, .tied = true},
      {.n_head_kv = 1, .n_rot = 8, .activation = Activation::kSilu},
      {.n_head_kv = 4, .rope_freqs = true, .linear_scale = 2},
      {.n_layer = 3, .n_embd = 21, .n_ff = 37, .n_head = 3, .n_head_kv = 1, .head_dim = 10, .n_rot = 6},
      {.n_layer = 1, .n_embd = 5, .n_ff = 3, .n_head = 1, .n_head_kv = 1, .head_dim = 2, .neuron_major = false},
      {.n_layer = 1, .n_embd = 130, .n_ff = 1, .n_head = 5, .n_head_kv = 5, .head_dim = 26},
      {.n_layer = 12, .n_embd = 16, .n_ff = 20, .n_head = 2, .n_head_kv = 2, .head_dim = 8},
  };
  for (TinySpec spec : specs) {
    for (spec.seed = 1; spec.seed <= 2; ++spec.seed) {
      CAPTURE(spec.n_embd);
      CAPTURE(spec.seed);
      CHECK(worst_nmse(load_tiny(spec), {.n_threads = 2}, random_tokens(spec.seed, 20, 270)) <= 1e-10);
    }
  }
}

TEST_CASE("engine: weights and KV caches of other types stay within their rounding") {
  // Weights are widened exactly. A KV cache of halves errs by 2^-11 per element; activations of 8 bits by 1/254 of a
  // block's largest, about 0.3 % per product, which grows over two layers: the worst position of 60 models of Q8_0 had
  // 1e-3 on average, and 2.9e-3 at most.
  for (const DType dtype : kModelTypes) {
    if (skips_for_threads(dtype)) continue;
    for (const bool neuron_major : {false, true}) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(neuron_major);
      const bool blocks = is_block_type(dtype);
      TinySpec spec{.dtype = dtype, .neuron_major = neuron_major, .seed = 3};
      widen_for(dtype, spec);
      const auto model = load_tiny(spec);
      const Ids ids = random_tokens(4, 40, 270);
      CHECK(worst_nmse(model, {.n_threads = 1, .kv_type = "f32", .mode = "dense"}, ids) <= (blocks ? 5e-3 : 1e-10));
      CHECK(worst_nmse(model, {.n_threads = 1, .kv_type = "f16", .mode = "dense"}, ids) <= (blocks ? 5e-3 : 1e-5));
    }
  }
  const auto model = load_tiny({.head_dim = 64, .seed = 3});
  CHECK(worst_nmse(model, {.n_threads = 1, .kv_type = "q8_0"}, random_tokens(4, 40, 270)) <= 1e-3);
}

TEST_CASE("engine: the bits do not depend on threads, instruction set or the way tokens are batched") {
  for (const DType dtype : kModelTypes) {
    if (shares_kernels(dtype) || skips_for_threads(dtype)) continue;
    for (const bool neuron_major : {false, true}) {
      CAPTURE(dtype_name(dtype));
      CAPTURE(neuron_major);
      TinySpec spec{.dtype = dtype,
                    .neuron_major = neuron_major,
                    .activation = neuron_major ? Activation::kRelu : Activation::kSilu,
                    .seed = 5};
      widen_for(dtype, spec);
      if (!is_block_type(dtype)) spec.n_embd = 50, spec.n_ff = 101, spec.head_dim = 14;  // multiples of no tile
      const auto model = load_tiny(spec);
      const Ids ids = random_tokens(6, 71, 270);
      const Logits expected = all_logits(model, {.n_threads = 1, .isa = "generic"}, ids);
      REQUIRE(expected.size() == ids.size() * static_cast<size_t>(model->config().n_vocab));
      for (const std::string& isa : isas()) {
        CAPTURE(isa);
        for (const int32_t n_threads : {1, 2, 3, 4, 7}) {
          if (n_threads > 2 && isa != isas().back()) continue;
          if (kFewCases && (n_threads == 2 || n_threads == 4)) continue;
          CAPTURE(n_threads);
          CHECK(all_logits(model, {.n_threads = n_threads, .isa = isa}, ids) == expected);
        }
        const auto engine = Engine::create(model, {.n_threads = 2, .isa = isa});
        for (const size_t piece : {1, 2, 3, 4, 5, 6, 17, 70}) {
          if (kFewCases && piece != 1 && piece != 5 && piece != 17) continue;
          CAPTURE(piece);
          CHECK(all_logits(engine, ids, piece) == expected);
        }
      }
      for (const int32_t n_batch : {1, 2, 3, 5, 7, 33, 64}) {
        if (kFewCases && n_batch != 2 && n_batch != 33) continue;
        CAPTURE(n_batch);
        CHECK(all_logits(model, {.n_threads = 2, .n_batch = n_batch}, ids) == expected);
      }
    }
  }
}

TEST_CASE("engine: the same in contexts longer than a chunk of attention") {
  for (const DType dtype : {DType::kF32, DType::kQ8_0}) {
    CAPTURE(dtype_name(dtype));
    const auto model = load_tiny({.dtype = dtype, .seed = 7});
    const Ids ids = random_tokens(8, 530, 270);
    const Logits expected = all_logits(model, {.n_threads = 1, .isa = "generic"}, ids);
    CHECK(all_logits(model, {.n_threads = 3, .n_batch = 37}, ids) == expected);
    const auto engine = Engine::create(model, {.n_threads = 2});
    CHECK(all_logits(engine, ids, 1) == expected);
    CHECK(all_logits(engine, ids, 3) == expected);
    CHECK(all_logits(engine, ids, 127) == expected);
  }
  CHECK(worst_nmse(load_tiny({.n_layer = 1, .seed = 7}), {.n_threads = 2}, random_tokens(9, 530, 270)) <= 1e-10);
}

TEST_CASE("engine: windows shorter and longer than a chunk of attention, in contexts of several") {
  for (const int64_t window : {1, 40, 256, 300}) {
    CAPTURE(window);
    const auto model = load_tiny({.n_layer = 1, .n_embd = 24, .n_ff = 20, .head_dim = 6, .window = window, .seed = 9});
    const Ids ids = random_tokens(8, 600, 270);
    const Logits expected = all_logits(model, {.n_threads = 1, .kv_type = "f32", .isa = "generic"}, ids);
    SlowModel slow(*model);
    double worst = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::vector<double> logits = slow.step(ids[i]);
      worst = std::max(worst, nmse(std::span(expected).subspan(i * logits.size(), logits.size()), logits));
    }
    CHECK(worst <= 1e-10);
    CHECK(all_logits(model, {.n_threads = 3, .n_batch = 37, .kv_type = "f32"}, ids) == expected);
    CHECK(all_logits(model, {.n_threads = 2, .n_batch = 300, .kv_type = "f32"}, ids) == expected);
    CHECK(all_logits(Engine::create(model, {.n_threads = 2, .kv_type = "f32"}), ids, 1) == expected);
  }
}

TEST_CASE("engine: a KV cache of blocks gives the same bits on every way to the same tokens") {
  for (const int64_t head_dim : {32, 96}) {
    CAPTURE(head_dim);
    const auto model = load_tiny({.n_head = 6, .n_head_kv = 2, .head_dim = head_dim, .dtype = DType::kF16, .seed = 11});
    const Ids ids = random_tokens(12, 300, 270);
    const Logits expected = all_logits(model, {.n_threads = 1, .kv_type = "q8_0", .isa = "generic"}, ids);
    CHECK(expected != all_logits(model, {.n_threads = 1}, ids));
    for (const std::string& isa : isas())
      CHECK(all_logits(model, {.n_threads = 3, .n_batch = 37, .kv_type = "q8_0", .isa = isa}, ids) == expected);
    const auto engine = Engine::create(model, {.n_threads = 2, .kv_type = "q8_0"});
    for (const size_t piece : {1, 3, 127}) CHECK(all_logits(engine, ids, piece) == expected);
    Session session = open_with(engine, random_tokens(13, 290, 270));
    session.truncate(0);
    session.prefill(std::span(ids).first(280));
    session.truncate(33);
    session.prefill(std::span(ids).subspan(33));
    CHECK(copy(session.logits()) == Logits(expected.end() - model->config().n_vocab, expected.end()));
  }
}

TEST_CASE("engine: a batch of 8 sequences of different lengths equals 8 single runs") {
  for (const DType dtype : {DType::kF32, DType::kQ4_0}) {
    const auto model = load_tiny({.dtype = dtype, .seed = 9});
    const auto engine = Engine::create(model, {.n_threads = 2, .n_batch = 50});
    std::vector<Ids> prompts;
    for (const size_t n : {1, 300, 2, 33, 7, 64, 128, 19}) prompts.push_back(random_tokens(n, n, 270));
    std::vector<Session> batch;
    for (size_t i = 0; i < prompts.size(); ++i) batch.push_back(engine->open_session());
    const auto step = [&](const std::vector<Ids>& tokens) {
      std::vector<Engine::Entry> entries;
      for (size_t i = 0; i < batch.size(); ++i) entries.push_back({&batch[i], tokens[i], i % 3 == 1});
      engine->advance(entries);
    };
    step(prompts);
    std::vector<Ids> next;
    for (int32_t i = 0; i < 8; ++i) next.push_back(i % 2 ? Ids{10 + i} : Ids{20 + i, 30 + i, 40 + i});
    for (int round = 0; round < 3; ++round) step(next);
    for (size_t i = 0; i < batch.size(); ++i) {
      CAPTURE(i);
      Session single = open_with(engine, prompts[i]);
      for (int round = 0; round < 3; ++round) single.prefill(next[i]);
      CHECK(copy(batch[i].logits()) == copy(single.logits()));
      CHECK(batch[i].tokens() == single.tokens());
      CHECK(batch[i].all_logits().size() == (i % 3 == 1 ? next[i].size() : 1) * batch[i].logits().size());
    }
  }
}

TEST_CASE("engine: weights may lie at any address that the format allows") {
  const Ids ids = random_tokens(10, 9, 270);
  for (const DType dtype : kModelTypes) {
    if (shares_kernels(dtype) || skips_for_threads(dtype)) continue;
    for (const bool neuron_major : {false, true}) {
      TinySpec spec{.dtype = dtype, .neuron_major = neuron_major, .rope_freqs = true};
      widen_for(dtype, spec);
      const Logits expected = all_logits(load_tiny(spec), {.n_threads = 1}, ids);
      for (const uint32_t alignment : {8u, 16u}) {
        for (const char* padding : {"x", "xxxxxxxxx"}) {
          GgufWriter writer = tiny_writer(spec);
          writer.alignment = alignment;
          writer.set_u32("general.alignment", alignment);
          writer.set_text("padding", padding);
          const auto model = load_bytes(writer.bytes());
          for (const std::string& isa : isas()) CHECK(all_logits(model, {.n_threads = 1, .isa = isa}, ids) == expected);
        }
      }
    }
  }
}

TEST_CASE("engine: options outside their range are refused") {
  const auto model = load_tiny({});
  const auto refused = [&](const EngineOptions& options) {
    CHECK_THROWS_AS(Engine::create(model, options), std::invalid_argument);
  };
  refused({.n_threads = -1});
  refused({.n_threads = 1 << 20});
  refused({.n_threads = 1, .pin = "both"});
  refused({.n_threads = 1, .n_ctx = -1});
  refused({.n_threads = 1, .n_ctx = INT64_MAX});
  refused({.n_threads = 1, .n_ctx = int64_t{1} << 31});
  refused({.n_threads = 1, .n_batch = 0});
  refused({.n_threads = 1, .n_batch = 1 << 20});
  refused({.n_threads = 1, .n_sequences = -1});
  refused({.n_threads = 1, .kv_type = "f64"});
  refused({.n_threads = 1, .mode = "fast"});
  refused({.n_threads = 1, .device = "tpu"});
  CHECK_THROWS_AS(Engine::create(load_tiny({.activation = Activation::kSilu}), {.n_threads = 1, .mode = "exact"}), UnsupportedModelError);
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .mode = "predict"}), Error);
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .kv_type = "q8_0"}), UnsupportedModelError);  // heads of 16
  CHECK(Engine::create(load_tiny({.head_dim = 32}), {.n_threads = 1, .kv_type = "q8_0"})->info().kv_type == "q8_0");
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .isa = "avx1024"}), Error);
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .device = "virtual", .vram_budget = 1000}), std::invalid_argument);
  CHECK_THROWS_AS(Engine::create(model, {.n_threads = 1, .mode = "predict", .device = "virtual"}), Error);
  refused({.n_threads = 1, .device = "virtual", .n_gpu_layers = "some"});
  refused({.n_threads = 1, .device = "virtual", .kv_place = "disk"});
}

TEST_CASE("engine: info says what is in effect") {
  const auto model = load_tiny({});
  const EngineInfo info = Engine::create(model, {.n_threads = 3, .n_ctx = 100, .isa = "generic"})->info();
  CHECK(info.device == "cpu");
  CHECK(info.isa == "generic");
  CHECK(info.mode == "exact");
  CHECK(Engine::create(model, {.n_threads = 1, .mode = "dense"})->info().mode == "dense");
  CHECK(Engine::create(load_tiny({.activation = Activation::kSilu}), {.n_threads = 1})->info().mode == "dense");
  CHECK(info.kv_type == "f32");
  CHECK(info.n_threads == 3);
  CHECK(info.n_ctx == 100);
  CHECK(info.weight_bytes == model->size_bytes());
  const uint64_t row = 64 * 4, n_vocab = static_cast<uint64_t>(model->config().n_vocab);
  CHECK(info.weight_bytes_per_token == model->size_bytes() - (n_vocab - 1) * row);
  CHECK(info.kv_bytes_per_position == 2 * 2 * 2 * 16 * 4);
  CHECK(Engine::create(load_tiny({.dtype = DType::kF16}), {.n_threads = 1})->info().kv_type == "f16");
  CHECK(Engine::create(model, {})->info().n_ctx == 1024);
  CHECK(Engine::create(model, {})->info().n_threads >= 1);
}

TEST_CASE("engine: after an error nobody has advanced, and all go on as if nothing had happened") {
  const auto model = load_tiny({});
  const auto engine = Engine::create(model, {.n_threads = 2, .n_ctx = 64, .n_batch = 8});
  const auto other_engine = Engine::create(model, {.n_threads = 1, .n_ctx = 64});
  const Ids first = random_tokens(11, 20, 270), more = random_tokens(12, 30, 270);
  const int32_t n_vocab = static_cast<int32_t>(model->config().n_vocab);
  Session a = open_with(engine, first), b = open_with(engine, more);
  Session foreign = open_with(other_engine, first);
  const Logits a_before = copy(a.logits()), b_before = copy(b.logits());
  const auto check_refused = [&](auto kind, const std::vector<Engine::Entry>& entries, const StopCheck& stop = {}) {
    CHECK_THROWS_AS(engine->advance(entries, stop), decltype(kind));
    CHECK(a.tokens() == first);
    CHECK(b.tokens() == more);
    CHECK(copy(a.logits()) == a_before);
    CHECK(copy(b.logits()) == b_before);
  };
  const std::invalid_argument invalid("");
  const Ids too_many = random_tokens(13, 45, 270), negative{5, -1, 5}, beyond{5, 6, n_vocab}, none;
  check_refused(ContextLengthError(""), {{&a, more}, {&b, too_many}});
  check_refused(invalid, {{&a, more}, {&b, negative}});
  check_refused(invalid, {{&a, beyond}, {&b, more}});
  check_refused(invalid, {{&a, none}, {&b, more}});
  check_refused(invalid, {{&a, more}, {&a, more}});
  check_refused(invalid, {{&a, more}, {&foreign, more}});
  check_refused(invalid, {{&a, more}, {nullptr, more}});
  Session gone = engine->open_session(), taken = std::move(gone);
  check_refused(invalid, {{&a, more}, {&gone, more}});
  for (const int n_calls : {0, 1, 20, 100}) {
    int n_asked = 0;
    check_refused(CancelledError(""), {{&a, more}, {&b, more}}, [&] { return n_asked++ == n_calls; });
  }
  check_refused(std::runtime_error(""), {{&a, more}, {&b, more}}, []() -> bool { throw std::runtime_error("own"); });
  engine->advance({});
  a.prefill(more);
  Ids joined = first;
  joined.insert(joined.end(), more.begin(), more.end());
  CHECK(copy(a.logits()) == copy(open_with(engine, joined).logits()));
  Session full = open_with(engine, random_tokens(14, 64, 270));
  CHECK_THROWS_AS(full.prefill(std::span(first).first(1)), ContextLengthError);
  CHECK(engine->open_session().logits().empty());
}

TEST_CASE("engine: cancel ends the running advance, or the next one, once") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 2, .n_ctx = 1024, .n_batch = 4});
  const Ids ids = random_tokens(15, 1000, 270);
  const Logits expected = copy(open_with(engine, ids).logits());
  Session session = engine->open_session();
  session.cancel();
  CHECK_THROWS_AS(session.prefill(ids), CancelledError);
  CHECK(session.n_past() == 0);
  for (int round = 0; round < 3; ++round) {  // from another thread, surely while computing
    std::atomic<int> n_asked{0};
    std::thread canceller([&] {
      while (n_asked.load() < 5) std::this_thread::yield();
      session.cancel();
    });
    CHECK_THROWS_AS(session.prefill(ids, [&] { return ++n_asked, n_asked > 1000000; }), CancelledError);
    canceller.join();
    CHECK(session.n_past() == 0);
  }
  Session other = engine->open_session();
  const std::vector<Engine::Entry> both{{&other, std::span(ids).first(9)}, {&session, ids}};
  session.cancel();
  CHECK_THROWS_AS(engine->advance(both), CancelledError);
  engine->advance(both);
  CHECK(copy(session.logits()) == expected);
  CHECK(other.n_past() == 9);
}

TEST_CASE("engine: threads with sessions of their own do not disturb each other") {
  const auto engine = Engine::create(load_tiny({.dtype = DType::kQ8_0}), {.n_threads = 2, .n_ctx = 200, .n_batch = 16});
  std::vector<Ids> prompts;
  std::vector<Logits> expected;
  for (size_t i = 0; i < 4; ++i) {
    prompts.push_back(random_tokens(60 + i, 20 + 13 * i, 270));
    expected.push_back(copy(open_with(engine, prompts[i]).logits()));
  }
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 6; ++round) {
        Session session = engine->open_session();
        session.prefill(std::span(prompts[i]).first(10));
        session.truncate(static_cast<int64_t>(i));
        session.prefill(std::span(prompts[i]).subspan(i));
        wrong[i] += copy(session.logits()) != expected[i];
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4));
}

TEST_CASE("engine: sessions keep their engine and model alive, and may be moved") {
  const Ids ids = random_tokens(16, 12, 270);
  auto engine = Engine::create(load_tiny({}), {.n_threads = 2});
  Session first = open_with(engine, ids);
  const Logits expected = copy(first.logits());
  engine.reset();
  Session second = std::move(first);
  CHECK(copy(second.logits()) == expected);
  std::vector<Session> many;
  many.push_back(std::move(second));
  second = std::move(many[0]);
  many.clear();
  CHECK(second.tokens() == ids);
  second.truncate(0);
  second.prefill(ids);
  CHECK(copy(second.logits()) == expected);
}

TEST_CASE("engine: NaN in the weights comes out as NaN, not as a crash") {
  for (const DType dtype : {DType::kF32, DType::kQ8_0}) {
    GgufWriter writer = tiny_writer({.dtype = dtype});
    writer.tensor("blk.0.ffn_norm.weight").data.replace(0, 4, ByteWriter().put(std::nanf("")).bytes());
    const auto engine = Engine::create(load_bytes(writer.bytes()), {.n_threads = 2});
    const Session session = open_with(engine, random_tokens(17, 5, 270));
    CHECK(std::isnan(session.logits()[0]));
  }
}

TEST_CASE("engine: a step that wants no logits but of its last token equals one that wants all") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 2, .n_batch = 5});
  const Ids ids = random_tokens(18, 23, 270);
  const Logits all = all_logits(engine, ids, ids.size());
  const Logits last = copy(open_with(engine, ids).logits());
  CHECK(Logits(all.end() - static_cast<std::ptrdiff_t>(last.size()), all.end()) == last);
}

}  // namespace
