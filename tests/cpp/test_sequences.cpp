// Sequences that share memory, are kept, saved and loaded: whatever is done with them, each gives what it would alone.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "core/error.h"
#include "core/placement.h"
#include "core/prefix_cache.h"
#include "core/sequence_file.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;

std::vector<float> copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

Ids joined(std::span<const int32_t> a, std::span<const int32_t> b) {
  Ids out(a.begin(), a.end());
  out.insert(out.end(), b.begin(), b.end());
  return out;
}

Ids first(const Ids& ids, size_t n) { return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n)}; }

// Logits after `ids` of an engine that has computed nothing else.
std::vector<float> alone(const std::shared_ptr<const Model>& model, const EngineOptions& options, const Ids& ids) {
  Session session = Engine::create(model, options)->open_session();
  session.prefill(ids);
  return copy(session.logits());
}

// What a session that holds `held` gives after `more`.
void check_goes_on(Session& session, const Ids& held, const Ids& more, const std::vector<float>& expected) {
  CHECK(session.tokens() == held);
  session.prefill(more);
  CHECK(copy(session.logits()) == expected);
}

TEST_CASE("sequences: the prefix cache finds the longest beginning, gives up the least recently used, counts right") {
  KvBlockPool pool(100);
  PrefixCache cache(pool, 32, 2);
  const auto blocks = [&](int n) {
    Ids out;
    for (int i = 0; i < n; ++i) out.push_back(pool.take());
    return out;
  };
  const auto release = [&](const Ids& ids) {
    for (const int32_t block : ids) pool.release(block);
  };
  const Ids a = random_tokens(1, 70, 270), b = joined(first(a, 40), random_tokens(2, 60, 270));
  const Ids a_blocks = blocks(3), b_blocks = blocks(4);
  cache.keep(a, a_blocks), cache.keep(b, b_blocks);
  release(a_blocks), release(b_blocks);
  CHECK(pool.n_used() == 7);
  const PrefixCache::Match match = cache.find(joined(a, Ids{5, 6}));
  CHECK(match.n_positions == 70);
  CHECK(match.blocks == a_blocks);
  CHECK(pool.count(a_blocks[0]) == 2);
  release(match.blocks);
  const PrefixCache::Match cut = cache.find(first(b, 64));
  CHECK(cut.n_positions == 64);
  CHECK(cut.blocks == first(b_blocks, 2));
  release(cut.blocks);
  CHECK(cache.find(first(a, PrefixCache::kLeastMatch - 1)).n_positions == 0);
  CHECK(cache.find(random_tokens(9, 50, 270)).blocks.empty());

  const Ids c = joined(a, random_tokens(3, 10, 270)), c_blocks = blocks(3);
  cache.keep(c, c_blocks);  // begins with a, whose blocks go
  release(c_blocks);
  CHECK(cache.n_kept() == 2);
  CHECK(pool.n_used() == 7);
  cache.keep(first(c, 64), first(c_blocks, 2));  // begins c, which stands for it
  CHECK(cache.n_kept() == 2);
  CHECK(pool.count(c_blocks[0]) == 1);
  const Ids d = random_tokens(4, 20, 270), d_blocks = blocks(1);
  cache.keep(d, d_blocks);  // the third: b was used longest ago
  release(d_blocks);
  CHECK(cache.n_kept() == 2);
  CHECK(pool.n_used() == 4);
  CHECK(cache.find(b).n_positions == 40);  // of c
  release(first(c_blocks, 2));
  CHECK(cache.drop_oldest());
  CHECK(pool.n_used() == 3);
  CHECK(cache.drop_oldest());
  CHECK_FALSE(cache.drop_oldest());
  CHECK(pool.n_used() == 0);
  PrefixCache none(pool, 32, 0);
  none.keep(a, a_blocks);
  CHECK(none.n_kept() == 0);
}

TEST_CASE("sequences: a fork and its origin go on as if they were alone, wherever they part") {
  const auto model = load_tiny({});
  const EngineOptions options{.n_threads = 2, .n_ctx = 400, .n_sequences = 3};
  const auto engine = Engine::create(model, options);
  const Ids ids = random_tokens(1, 300, 270), more = random_tokens(2, 40, 270), other = random_tokens(3, 40, 270);
  for (const size_t n : {0, 1, 31, 32, 33, 64, 255, 256, 257, 299, 300}) {
    CAPTURE(n);
    Session origin = engine->open_session();
    origin.prefill(ids);
    Session forked = origin.fork(static_cast<int64_t>(n));
    Session third = forked.fork(static_cast<int64_t>(n / 2));
    CHECK(forked.logits().empty());
    check_goes_on(origin, ids, more, alone(model, options, joined(ids, more)));
    check_goes_on(forked, first(ids, n), other, alone(model, options, joined(first(ids, n), other)));
    // Writing after truncating into what is shared must not reach the others.
    origin.truncate(static_cast<int64_t>(n / 2));
    check_goes_on(origin, first(ids, n / 2), other, alone(model, options, joined(first(ids, n / 2), other)));
    check_goes_on(third, first(ids, n / 2), more, alone(model, options, joined(first(ids, n / 2), more)));
    const Ids held = forked.tokens();
    check_goes_on(forked, held, more, alone(model, options, joined(held, more)));
  }
  Session session = engine->open_session();
  session.prefill(more);
  CHECK_THROWS_AS(session.fork(-1), std::invalid_argument);
  CHECK_THROWS_AS(session.fork(41), std::invalid_argument);
}

TEST_CASE("sequences: random use of three sessions gives each its own results, within the memory set aside") {
  for (const char* kv_type : {"f16", "f32", "q8_0"}) {
    const auto model = load_tiny({.n_layer = 1, .head_dim = 32, .n_ctx = 128});
    const EngineOptions options{
        .n_threads = 1, .n_ctx = 128, .n_sequences = 3, .n_kept_sequences = 4, .kv_type = kv_type};
    const auto engine = Engine::create(model, options);
    const auto plain = Engine::create(model, {.n_threads = 1, .n_ctx = 128, .n_kept_sequences = 0, .kv_type = kv_type});
    const uint64_t seed = 7;
    CAPTURE(seed);
    CAPTURE(kv_type);
    std::mt19937_64 random(seed);
    const Ids texts[] = {random_tokens(1, 128, 270),
                         joined(first(random_tokens(1, 128, 270), 70), random_tokens(2, 58, 270))};
    std::vector<Session> sessions;
    for (int i = 0; i < 3; ++i) sessions.push_back(engine->open_session());
    for (int round = 0; round < 1500; ++round) {
      Session& session = sessions[random() % 3];
      const size_t n = static_cast<size_t>(session.n_past());
      switch (random() % 6) {
        case 0: session.truncate(static_cast<int64_t>(random() % (n + 1))); break;
        case 1: session.retire(); break;
        case 2: session.keep(); break;
        case 3: session = sessions[random() % 3].fork(0); break;
        case 4: {
          Session& other = sessions[random() % 3];
          if (&other != &session)
            session = other.fork(static_cast<int64_t>(random() % static_cast<size_t>(other.n_past() + 1)));
          break;
        }
        default: {
          const Ids& text = texts[random() % 2];
          if (n == 0) session.reuse(first(text, 1 + random() % 128));
          const size_t held = static_cast<size_t>(session.n_past());
          if (held == 128) break;
          // Goes on with a text, so that beginnings meet again.
          const size_t count = 1 + random() % (128 - held);
          Ids ids(text.begin() + static_cast<std::ptrdiff_t>(held),
                  text.begin() + static_cast<std::ptrdiff_t>(held + count));
          session.prefill(ids);
          Session fresh = plain->open_session();
          fresh.prefill(session.tokens());
          REQUIRE(copy(session.logits()) == copy(fresh.logits()));
        }
      }
    }
  }
}

TEST_CASE("sequences: what is kept makes room for what is open, down to the last block") {
  const auto model = load_tiny({.n_layer = 1, .n_ctx = 64});
  const EngineOptions options{.n_threads = 1, .n_ctx = 64, .n_sequences = 1};
  const auto engine = Engine::create(model, options);
  const Ids ids = random_tokens(1, 64, 270);
  for (const size_t n : {1, 20, 32, 40, 63, 64}) {
    CAPTURE(n);
    Session session = engine->open_session();
    session.prefill(ids);
    session.retire();
    CHECK(session.n_past() == 0);
    const Ids text = n == 64 ? ids : joined(first(ids, n), random_tokens(n, 64 - n, 270));
    CHECK(session.reuse(text) == (n == 1 ? 0 : std::min<int64_t>(static_cast<int64_t>(n), 63)));
    session.prefill(std::span(text).subspan(static_cast<size_t>(session.n_past())));
    CHECK(copy(session.logits()) == alone(model, options, text));
    CHECK_THROWS_AS(session.reuse(text), std::invalid_argument);
  }
  // Without a fixed number, what is kept stays within one context.
  const auto open = Engine::create(model, {.n_threads = 1, .n_ctx = 64});
  const auto reused = [&](const Ids& text) {
    Session session = open->open_session();
    const int64_t n = session.reuse(text);
    session.prefill(std::span(text).subspan(static_cast<size_t>(n)));
    session.retire();
    return n;
  };
  const Ids a = random_tokens(5, 60, 270), b = random_tokens(6, 60, 270);
  CHECK(reused(a) == 0);
  CHECK(reused(a) == 59);
  CHECK(reused(b) == 0);
  CHECK(reused(a) == 0);
}

GenerateOptions greedy(bool reuse = true) {
  GenerateOptions out;
  out.max_tokens = 12;
  out.sampler.temperature = 0;
  out.ignore_eos = true;
  out.reuse = reuse;
  return out;
}

// Ids of each sequence.
std::vector<Ids> run(Generation& generation, size_t n) {
  std::vector<Ids> out(n);
  while (generation.next())
    for (const GeneratedToken& token : generation.tokens()) out[token.sequence].push_back(token.id);
  return out;
}

TEST_CASE("sequences: prompts that begin alike are computed once, in a batch and one after the other") {
  const auto model = load_tiny({});
  const Ids system = random_tokens(1, 100, 270);
  std::vector<Ids> prompts{joined(system, Ids{5, 6, 7}),
                           random_tokens(9, 50, 270),
                           joined(system, random_tokens(2, 70, 270)),
                           system,
                           joined(system, joined(random_tokens(2, 70, 270), Ids{8, 9})),
                           random_tokens(9, 50, 270)};
  for (const bool exact : {false, true}) {
    const EngineOptions options{.n_threads = 2, .n_ctx = 1000, .n_batch = 32, .mode = exact ? "exact" : "dense"};
    const auto plain = Engine::create(model, options);
    std::vector<Ids> expected;
    for (const Ids& prompt : prompts) {
      Generation generation(plain, {prompt}, greedy(/*reuse=*/false));
      expected.push_back(run(generation, 1)[0]);
      CHECK(generation.stats().n_prompt_reused == 0);
    }
    const auto engine = Engine::create(model, options);
    int64_t n_prompt = 0;
    for (const Ids& prompt : prompts) n_prompt += static_cast<int64_t>(prompt.size());
    {
      Generation generation(engine, prompts, greedy());
      CHECK(run(generation, prompts.size()) == expected);
      CHECK(generation.stats().n_prompt == n_prompt);
      // Whole blocks: 3 of the system prompt, 5 with the text after it, 1 of the other text.
      CHECK(generation.stats().n_prompt_reused == 96 + 96 + 160 + 32);
      const int64_t n_rows = n_prompt - generation.stats().n_prompt_reused + 6 * 11;
      if (exact) CHECK(engine->unit_counts().total == static_cast<uint64_t>(n_rows * 2 * 96));  // layers, units
    }
    for (size_t i = 0; i < prompts.size(); ++i) {
      CAPTURE(i);
      Generation generation(engine, {prompts[i]}, greedy());
      CHECK(run(generation, 1)[0] == expected[i]);
      CHECK(generation.stats().n_prompt_reused == static_cast<int64_t>(prompts[i].size()) - 1);
    }
    Generation off(engine, {system}, greedy(/*reuse=*/false));
    CHECK(run(off, 1)[0] == expected[3]);
    CHECK(off.stats().n_prompt_reused == 0);
  }
}

TEST_CASE("sequences: beginnings that are shared in steps, and cancelling amid them") {
  const auto model = load_tiny({.n_layer = 1});
  const auto engine = Engine::create(model, {.n_threads = 2, .n_ctx = 400, .n_batch = 16, .n_kept_sequences = 0});
  const Ids ids = random_tokens(1, 400, 270);
  std::vector<Ids> prompts;
  for (size_t n = 300; n > 20; n -= 40)
    prompts.push_back(joined(first(ids, n), Ids{static_cast<int32_t>(n % 250) + 3, 7}));
  std::vector<Ids> expected;
  for (const Ids& prompt : prompts) {
    Generation generation(engine, {prompt}, greedy());
    expected.push_back(run(generation, 1)[0]);
  }
  Generation whole(engine, prompts, greedy());
  CHECK(run(whole, prompts.size()) == expected);
  CHECK(whole.stats().n_prompt_reused == 256 + 192 + 160 + 128 + 96 + 32);
  for (int after = 0; after < 40; after += 3) {
    Generation generation(engine, prompts, greedy());
    int n_asked = 0;
    const StopCheck stop = [&] { return n_asked++ == after; };
    bool stopped = false;
    try {
      generation.next(stop);
    } catch (const CancelledError&) {
      stopped = true;
    }
    CHECK(stopped);
    CHECK(run(generation, prompts.size()) == expected);  // the caller's stop check does not end it
  }
}

TEST_CASE("sequences: threads that keep, reuse and share the same beginnings") {
  const auto model = load_tiny({.n_layer = 1, .n_embd = 32, .n_ff = 32, .head_dim = 8});
  const auto engine = Engine::create(model, {.n_threads = 2, .n_ctx = 200, .n_batch = 16, .n_kept_sequences = 3});
  const auto plain = Engine::create(model, {.n_threads = 2, .n_ctx = 200, .n_kept_sequences = 0});
  const Ids system = random_tokens(1, 75, 270);
  std::vector<Ids> prompts;
  std::vector<Ids> expected;
  for (uint64_t i = 0; i < 6; ++i) {
    prompts.push_back(joined(first(system, 75 - 8 * i), random_tokens(i + 2, 20, 270)));
    Generation generation(plain, {prompts.back()}, greedy(false));
    expected.push_back(run(generation, 1)[0]);
  }
  std::vector<std::thread> threads;
  std::atomic<int> n_wrong{0};
  for (size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (size_t round = 0; round < 12; ++round) {
        const size_t i = (t + round) % 6, j = (t * 5 + round) % 6;
        Generation generation(engine, {prompts[i], prompts[j]}, greedy());
        const std::vector<Ids> got = run(generation, 2);
        if (got[0] != expected[i] || got[1] != expected[j]) ++n_wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(n_wrong == 0);
}

TEST_CASE("sequences: a generation goes on with a session and gives it back") {
  const auto model = load_tiny({});
  const auto engine = Engine::create(model, {.n_threads = 2, .n_ctx = 100});
  const Ids a = random_tokens(1, 40, 270), b = random_tokens(2, 20, 270);
  Generation turn(engine->open_session(), a, greedy());
  const Ids said = run(turn, 1)[0];
  Generation::Rest rest = turn.take_session();
  CHECK(rest.pending == Ids{said.back()});
  CHECK(joined(rest.session.tokens(), rest.pending) == joined(a, said));
  CHECK_FALSE(turn.next());
  const Ids whole = joined(joined(a, said), b);
  const Ids more = joined(rest.pending, b);
  CHECK_THROWS_AS(Generation(rest.session.fork(51), random_tokens(3, 50, 270), greedy()), ContextLengthError);
  GenerateOptions wrong = greedy();
  wrong.sampler.temperature = -1;
  CHECK_THROWS_AS(Generation(std::move(rest.session), more, wrong), std::invalid_argument);  // does not take it
  Generation second(std::move(rest.session), more, greedy());
  const Ids answer = run(second, 1)[0];
  CHECK(second.stats().n_prompt == static_cast<int64_t>(more.size()));
  CHECK(second.stats().n_prompt_reused == 0);
  Generation plain(Engine::create(model, {.n_threads = 1}), {whole}, greedy());
  CHECK(answer == run(plain, 1)[0]);
  Generation unused(engine->open_session(), a, greedy());
  rest = unused.take_session();
  CHECK(rest.session.n_past() == 0);
  CHECK(rest.pending == a);
}

// --- files ----------------------------------------------------------------------------------------------------------

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

TEST_CASE("sequences: a loaded sequence goes on bit for bit") {
  const Ids ids = random_tokens(1, 100, 270), more = random_tokens(2, 30, 270);
  for (const char* kv_type : {"f16", "f32", "q8_0"}) {
    const auto model = load_tiny({.head_dim = 32});
    const EngineOptions options{.n_threads = 2, .n_ctx = 200, .kv_type = kv_type};
    const auto engine = Engine::create(model, options), other = Engine::create(model, options);
    for (const size_t n : {0, 1, 32, 33, 100}) {
      CAPTURE(kv_type);
      CAPTURE(n);
      const TempFile file("");
      Session session = engine->open_session();
      if (n > 0) session.prefill(std::span(ids).first(n));
      session.save(file.path());
      Session loaded = other->load_session(file.path());
      CHECK(loaded.logits().empty());
      check_goes_on(loaded, first(ids, n), more, alone(model, options, joined(first(ids, n), more)));
      check_goes_on(session, first(ids, n), more, copy(loaded.logits()));
      loaded.truncate(static_cast<int64_t>(n));
      loaded.save(file.path() + ".again");  // what follows in the last block is not in the file
      CHECK(read_file(file.path() + ".again") == read_file(file.path()));
      std::filesystem::remove(file.path() + ".again");
    }
  }
}

// Layers and their keys and values on either lane; of the first layer they are apart with `host_kv`.
EngineOptions placed(std::initializer_list<Place> attention, bool host_kv) {
  Placement placement;
  for (const Place place : attention) placement.layers.push_back({40, DetectPlace::kSplit, place});
  placement.layers[0].host_kv = host_kv && placement.layers[0].attention == Place::kDevice;
  EngineOptions out{
      .n_threads = 2, .n_ctx = 200, .n_batch = 32, .n_sequences = 3, .mode = "exact", .device = "virtual"};
  out.placement = std::make_shared<const Placement>(placement);
  return out;
}

TEST_CASE("sequences: blocks with a part in each lane's memory are shared, copied, saved and loaded whole") {
  const auto model = load_tiny({.n_layer = 3});
  const Ids a = random_tokens(1, 75, 270), more = random_tokens(2, 40, 270), other = random_tokens(3, 40, 270);
  const EngineOptions on_cpu{.n_threads = 2, .n_ctx = 200, .mode = "exact"};
  const std::vector<float> expected = alone(model, on_cpu, joined(a, more));
  const Ids b = joined(first(a, 50), other);
  constexpr Place kHost = Place::kHost, kDevice = Place::kDevice;
  std::string bytes;
  const TempFile file("");
  for (const auto& places : {std::initializer_list<Place>{kDevice, kHost, kDevice},
                             {kDevice, kDevice, kDevice},
                             {kHost, kHost, kDevice},
                             {kHost, kHost, kHost}}) {
    const bool host_kv = places.begin()[1] == kDevice;
    const auto engine = Engine::create(model, placed(places, host_kv));
    Session session = engine->open_session();
    session.prefill(a);
    session.save(file.path());
    const std::string saved = read_file(file.path());
    if (bytes.empty()) bytes = saved;
    CHECK(saved == bytes);  // whatever lies where
    Session fork = session.fork(50);
    check_goes_on(fork, first(a, 50), other, alone(model, on_cpu, b));
    check_goes_on(session, a, more, expected);
    session.retire();
    CHECK(session.reuse(joined(a, more)) == 114);
    session.truncate(75);  // the block is the kept sequence's too
    check_goes_on(session, a, more, expected);
    Session elsewhere = Engine::create(model, on_cpu)->load_session(file.path());
    check_goes_on(elsewhere, a, more, expected);
    fork.truncate(0);
    Session loaded = engine->load_session(file.path());
    check_goes_on(loaded, a, more, expected);
  }
}

TEST_CASE("sequences: files of another model, type or length, and damaged ones, are refused") {
  const auto model = load_tiny({.head_dim = 32});
  const auto engine = Engine::create(model, {.n_threads = 1, .n_ctx = 100, .kv_type = "f16"});
  const TempFile file("");
  Session session = engine->open_session();
  session.prefill(random_tokens(1, 70, 270));
  session.save(file.path());
  const std::string bytes = read_file(file.path());
  const auto loads = [&](const std::shared_ptr<Engine>& from) { from->load_session(file.path()); };
  loads(engine);
  const auto on = [&](const TinySpec& spec, const char* kv_type, int64_t n_ctx = 100) {
    return Engine::create(load_tiny(spec), {.n_threads = 1, .n_ctx = n_ctx, .kv_type = kv_type});
  };
  CHECK_THROWS_WITH_AS(loads(on({.head_dim = 32, .seed = 2}, "f16")), doctest::Contains("another model"),
                       ModelFormatError);
  CHECK_THROWS_WITH_AS(loads(on({.head_dim = 32}, "q8_0")), doctest::Contains("expected Q8_0, got F16"),
                       ModelFormatError);
  CHECK_THROWS_WITH_AS(loads(on({.head_dim = 32}, "f16", 69)), doctest::Contains("at most 69"), ContextLengthError);
  CHECK_THROWS_AS(engine->load_session(file.path() + ".none"), Error);
  CHECK_THROWS_AS(session.save("/proc/none/file"), Error);

  const auto fails = [&](const std::string& damaged) {
    write_file(file.path(), damaged);
    const AllocationMeter meter;
    CHECK_THROWS_AS(loads(engine), Error);
    return meter.peak_bytes() < (1 << 20);
  };
  for (size_t n = 0; n < bytes.size(); n += n < 600 ? 1 : 997) CHECK(fails(bytes.substr(0, n)));
  CHECK(fails(bytes + "x"));
  std::mt19937_64 random(3);
  for (size_t i = 0; i < bytes.size(); i += i < 600 ? 1 : 499) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << random() % 8));
    CHECK(fails(damaged));
  }
  for (const uint64_t n : {uint64_t{1} << 20, uint64_t{1} << 62, ~uint64_t{0}}) {  // tokens
    std::string damaged = bytes;
    std::memcpy(damaged.data() + 88, &n, sizeof n);
    CHECK(fails(damaged));
  }
  write_file(file.path(), bytes);
  loads(engine);
}

TEST_CASE("sequences: the same model in another weight type is told apart") {
  TinySpec spec{.n_layer = 1, .head_dim = 32};
  const TempFile file("");
  Session session = Engine::create(load_tiny(spec), {.n_threads = 1, .kv_type = "f16"})->open_session();
  session.prefill(random_tokens(1, 20, 270));
  session.save(file.path());
  spec.dtype = DType::kF16;
  const auto other = Engine::create(load_tiny(spec), {.n_threads = 1, .kv_type = "f16"});
  CHECK_THROWS_WITH_AS(other->load_session(file.path()), doctest::Contains("in another type"), ModelFormatError);
}

TEST_CASE("sequences: a token outside the vocabulary is refused though the digest is right") {
  const SequenceOrigin origin{std::string(32, 'a'), 1, KvLayout{1, 1, 32, DType::kF16}, 10};
  const TempFile file("");
  const auto zeros = [&](size_t, std::byte* out) { std::fill_n(out, origin.kv.block_bytes(), std::byte{0}); };
  write_sequence(file.path(), origin, Ids{1, 9}, zeros);
  CHECK(SequenceFile::load(file.path(), origin, 2).tokens() == Ids{1, 9});
  write_sequence(file.path(), origin, Ids{1, 10}, zeros);
  CHECK_THROWS_AS(SequenceFile::load(file.path(), origin, 2), ModelFormatError);
}

}  // namespace
