// The engine's limits: memory that hostile shapes may take, turns of concurrent calls, ends of contexts in batches,
// processes that were forked.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>

#include "core/error.h"
#include "core/thread_pool.h"
#include "tests/cpp/util.h"

namespace {

using namespace hotset;
using namespace hotset::test;
using Ids = std::vector<int32_t>;

TEST_CASE("engine: activations of a small file with wide layers stay small, and results do not change") {
  const TinySpec spec{.n_layer = 1, .n_embd = 2, .n_ff = 1 << 17, .n_head = 64, .n_head_kv = 64, .head_dim = 64};
  const auto model = load_tiny(spec);
  const auto narrow = Engine::create(model, {.n_threads = 2, .n_batch = 4096});
  CHECK(narrow->info().buffer_bytes < 2 * std::max<uint64_t>(model->size_bytes(), 64 << 20));
  const Ids ids = random_tokens(1, 90, 270);
  Session many = narrow->open_session();
  many.prefill(ids);
  Session single = narrow->open_session();
  for (const int32_t id : ids) single.prefill({&id, 1});
  CHECK(std::equal(many.logits().begin(), many.logits().end(), single.logits().begin()));
}

TEST_CASE("engine: many attention chunks, merged by one worker or shared out, give the same bits") {
  const auto model = load_tiny({.n_layer = 1, .n_ctx = 1600});
  const Ids ids = random_tokens(6, 1500, 270);
  const auto at_once = Engine::create(model, {.n_threads = 1});
  Session whole = at_once->open_session();
  whole.prefill(ids);
  for (const int32_t n_threads : {1, 2, 3}) {
    const auto engine = Engine::create(model, {.n_threads = n_threads});
    Session session = engine->open_session();
    session.prefill(std::span(ids).first(1490));
    for (size_t i = 1490; i < ids.size(); ++i) session.prefill(std::span(ids).subspan(i, 1));
    CHECK(std::equal(session.logits().begin(), session.logits().end(), whole.logits().begin()));
  }
}

TEST_CASE("engine: a session opens, steps back and closes while another computes") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 2, .n_batch = 8});
  std::promise<void> reached, closed;
  std::future<void> is_reached = reached.get_future();
  std::shared_future<void> is_closed = closed.get_future();
  std::atomic<bool> first{true};
  std::atomic<bool> waited{false};
  std::thread other([&] {
    Session session = engine->open_session();
    session.prefill(random_tokens(2, 40, 270), [&] {
      if (first.exchange(false)) {
        reached.set_value();
        waited = is_closed.wait_for(std::chrono::seconds(60)) == std::future_status::ready;
      }
      return false;
    });
  });
  is_reached.wait();  // the other call is inside a step now, and stays there until this session is gone
  {
    Session session = engine->open_session();
    session.truncate(0);
  }
  closed.set_value();
  other.join();
  CHECK(waited);
}

TEST_CASE("generation: a sequence at the end of its context does not end the others") {
  const auto engine = Engine::create(load_tiny({}), {.n_threads = 2, .n_ctx = 64});
  GenerateOptions options;
  options.max_tokens = 30;
  options.ignore_eos = true;
  options.sampler.temperature = 0;
  const std::vector<Ids> prompts{random_tokens(3, 60, 270), random_tokens(4, 5, 270)};
  const auto collect = [&](std::vector<Ids> of, bool expect_error) {
    Generation generation(engine, std::move(of), options);
    std::vector<Ids> out(2);
    bool failed = false;
    try {
      while (generation.next())
        for (const GeneratedToken& token : generation.tokens()) out[token.sequence].push_back(token.id);
    } catch (const ContextLengthError&) {
      failed = true;
    }
    CHECK(failed == expect_error);
    return out;
  };
  const std::vector<Ids> both = collect(prompts, true);
  CHECK(both[0].size() == 5);  // 4 free positions, and the last one's logits give a fifth token
  CHECK(both[1] == collect({prompts[1]}, false)[0]);
}

TEST_CASE("generation: rows of a padded embedding table are never sampled") {
  GgufWriter file = tiny_writer({.n_layer = 1});
  const uint64_t n_rows = file.tensor("token_embd.weight").ne.at(1) * 8;
  std::mt19937_64 random(5);
  for (const char* name : {"token_embd.weight", "output.weight"}) {
    file.erase_tensor(name);
    file.tensor(name, {64, n_rows}, static_cast<uint32_t>(DType::kF32),
                random_matrix(random, DType::kF32, 64, static_cast<int64_t>(n_rows)));
  }
  const auto engine = Engine::create(load_bytes(file.bytes()), {.n_threads = 1});
  GenerateOptions options;
  options.sampler.seed = 1;
  options.sampler.top_k = 0;
  options.sampler.top_p = 1;
  options.sampler.min_p = 0;
  options.max_tokens = 50;
  options.ignore_eos = true;
  Generation generation(engine, {{1, 5}}, options);
  int n = 0;
  while (generation.next())
    for (const GeneratedToken& token : generation.tokens()) {
      CHECK(token.id < engine->model().tokenizer().n_vocab());
      ++n;
    }
  CHECK(n == 50);
}

TEST_CASE("thread_pool: a forked process is told so instead of waiting for threads it does not have") {
  ThreadPool pool(2);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int code = 1;
    try {
      pool.run([](int32_t) {});
    } catch (const Error&) {
      code = 42;
    }
    ::_exit(code);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 42);
  pool.run([](int32_t) {});  // the parent's pool still works
}

}  // namespace
