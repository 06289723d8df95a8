// The pool of KV blocks, and what sessions make of it: chunks, slabs, truncation, blocks given back.
#include <doctest/doctest.h>

#include <algorithm>

#include "core/error.h"
#include "core/kv_cache.h"
#include "core/plan.h"
#include "tests/cpp/slow_model.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;

std::vector<float> copy(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

std::vector<float> fresh_logits(const std::shared_ptr<Engine>& engine, const Ids& ids) {
  Session session = engine->open_session();
  session.prefill(ids);
  return copy(session.logits());
}

TEST_CASE("kv blocks: taken from the lowest, reused, refused when all are in use") {
  KvBlockPool pool(3);
  CHECK(pool.n_free() == 3);
  CHECK(pool.take() == 0);
  CHECK(pool.take() == 1);
  CHECK(pool.take() == 2);
  CHECK(pool.take() == -1);
  CHECK(pool.n_free() == 0);
  CHECK(pool.n_used() == 3);
  pool.release(1);
  CHECK(pool.n_free() == 1);
  CHECK(pool.take() == 1);
  CHECK(pool.take() == -1);
}

TEST_CASE("kv blocks: a shared block is free when the last user is gone, and not sooner") {
  KvBlockPool pool(1);
  const int32_t block = pool.take();
  pool.share(block);
  pool.share(block);
  CHECK(pool.count(block) == 3);
  pool.release(block);
  pool.release(block);
  CHECK(pool.n_used() == 1);
  CHECK(pool.take() == -1);
  pool.release(block);
  CHECK(pool.n_free() == 1);
  CHECK_THROWS_AS(pool.release(block), Error);
}

TEST_CASE("kv blocks: random use agrees with a plain count") {
  const uint64_t seed = 11;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  KvBlockPool pool(20);
  std::vector<int> counts(20);
  for (int round = 0; round < 5000; ++round) {
    const auto used = std::count_if(counts.begin(), counts.end(), [](int count) { return count > 0; });
    REQUIRE(pool.n_used() == used);
    const size_t at = random() % 20;
    if (random() % 2) {
      const int32_t block = pool.take();
      REQUIRE((block < 0) == (used == 20));
      if (block < 0) continue;
      REQUIRE(counts[static_cast<size_t>(block)]++ == 0);
    } else if (counts[at] > 0) {
      const bool shares = random() % 3 == 0;
      if (shares)
        pool.share(static_cast<int32_t>(at));
      else
        pool.release(static_cast<int32_t>(at));
      counts[at] += shares ? 1 : -1;
    }
  }
}

TEST_CASE("kv layout: pages of a block lie side by side and fill it") {
  for (const DType dtype : {DType::kF16, DType::kF32, DType::kQ8_0}) {
    const int64_t head_dim = dtype == DType::kQ8_0 ? 64 : 5;
    const KvLayout kv{3, 2, head_dim, dtype};
    std::vector<size_t> offsets;
    for (int64_t layer = 0; layer < 3; ++layer)
      for (int64_t head = 0; head < 2; ++head)
        for (const bool is_value : {false, true}) offsets.push_back(kv.page_offset(layer, head, is_value));
    std::sort(offsets.begin(), offsets.end());
    for (size_t i = 0; i < offsets.size(); ++i) CHECK(offsets[i] == i * kv.page_bytes());
    CHECK(kv.block_bytes() == offsets.size() * kv.page_bytes());
    CHECK(kv.page_bytes() == 32 * (dtype == DType::kQ8_0 ? 2 * 34u : dtype == DType::kF16 ? 5 * 2u : 5 * 4u));
  }
}

TEST_CASE("kv cache: truncating and going on equals starting anew, bit for bit") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 2, .n_ctx = 600});
  const Ids ids = random_tokens(21, 560, 270), other = random_tokens(22, 60, 270);
  for (const int64_t keep : {0, 1, 31, 32, 33, 255, 256, 257, 480, 540}) {
    CAPTURE(keep);
    Session session = engine->open_session();
    session.prefill(std::span(ids).first(540));
    session.truncate(keep);
    CHECK(session.n_past() == keep);
    CHECK(session.tokens() == Ids(ids.begin(), ids.begin() + keep));
    session.prefill(other);
    Ids joined(ids.begin(), ids.begin() + keep);
    joined.insert(joined.end(), other.begin(), other.end());
    CHECK(session.tokens() == joined);
    CHECK(copy(session.logits()) == fresh_logits(engine, joined));
  }
  Session session = engine->open_session();
  session.prefill(std::span(ids).first(10));
  CHECK_THROWS_AS(session.truncate(-1), std::invalid_argument);
  CHECK_THROWS_AS(session.truncate(11), std::invalid_argument);
  session.truncate(10);
  CHECK(session.n_past() == 10);
}

TEST_CASE("kv cache: a context of several slabs gives what one of one slab gives") {
  // A block of the first model is 1 MiB, a slab 16 of them: 512 positions. Interleaved sessions scatter their blocks.
  const TinySpec spec{.n_layer = 1, .n_embd = 32, .n_ff = 32, .n_head = 8, .n_head_kv = 8, .head_dim = 512};
  const auto model = load_tiny(spec);
  const EngineOptions options{.n_threads = 2, .n_ctx = 700, .kv_type = "f32"};
  const auto engine = Engine::create(model, options);
  REQUIRE(engine->info().kv_bytes_per_position * 32 == 1 << 20);
  const Ids ids = random_tokens(31, 540, 270);
  Session a = engine->open_session(), b = engine->open_session();
  for (size_t at = 0; at < ids.size(); at += 90) {
    a.prefill(std::span(ids).subspan(at, 90));
    b.prefill(std::span(ids).subspan(at, 90));
  }
  CHECK(copy(a.logits()) == copy(b.logits()));
  CHECK(copy(a.logits()) == fresh_logits(Engine::create(model, options), ids));
  SlowModel slow(*model);
  std::vector<double> expected;
  for (const int32_t id : ids) expected = slow.step(id);
  CHECK(nmse(a.logits(), expected) < 1e-10);
}

TEST_CASE("kv cache: blocks set aside for n_sequences are a limit, and closed sessions give theirs back") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 1, .n_ctx = 64, .n_sequences = 2});
  const Ids ids = random_tokens(41, 64, 270);
  Session a = engine->open_session();
  a.prefill(ids);
  for (int round = 0; round < 5; ++round) {
    Session b = engine->open_session();
    b.prefill(ids);
    Session c = engine->open_session();
    CHECK_THROWS_AS(c.prefill(std::span(ids).first(1)), OutOfMemoryError);
    CHECK(c.n_past() == 0);
    b.truncate(32);
    c.prefill(std::span(ids).first(32));
    CHECK_THROWS_AS(c.prefill(std::span(ids).first(1)), OutOfMemoryError);
    CHECK(c.n_past() == 32);
  }
  Session moved = std::move(a);
  {
    Session b = engine->open_session();
    b.prefill(ids);
    b = std::move(moved);  // the old b goes with `moved`
    CHECK(b.n_past() == 64);
    CHECK(moved.n_past() == 64);
  }
  Session last = engine->open_session();
  last.prefill(ids);
}

TEST_CASE("kv cache: a failed prefill gives its blocks back") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 1, .n_ctx = 64, .n_batch = 8, .n_sequences = 1});
  const Ids ids = random_tokens(51, 64, 270);
  for (int round = 0; round < 3; ++round) {
    Session session = engine->open_session();
    int n_asked = 0;
    CHECK_THROWS_AS(session.prefill(ids, [&] { return ++n_asked > 60; }), CancelledError);
    CHECK(session.n_past() == 0);
    session.prefill(ids);
    CHECK(session.n_past() == 64);
  }
}

}  // namespace
