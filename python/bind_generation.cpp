// Binds a generation: options in, tokens out, the logits processor and cancelling.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "python/bindings.h"

namespace hotset::python {

namespace {

using LogitsRow = nb::ndarray<nb::numpy, float, nb::ndim<1>, nb::c_contig>;

// One generation as Python drives it. The processor is handed to each next() instead of being kept: a Python function
// kept in here would be a reference that the garbage collector cannot follow.
class NativeGeneration {
 public:
  // With a session, its tokens to be added and the only prompt go on with it.
  NativeGeneration(const NativeEngine& engine, std::vector<std::vector<int32_t>> prompts, GenerateOptions options,
                   bool use_processor, std::shared_ptr<NativeSession> session) {
    if (use_processor) {
      options.logits_processor = [this](size_t sequence, std::span<float> logits) { process(sequence, logits); };
    }
    if (session) {
      Generation::Rest& rest = session->take();
      try {
        go_on(rest, prompts.at(0), options);
      } catch (...) {
        session->give_back();
        throw;
      }
      rest_ = &rest;
      session_ = std::move(session);
      return;
    }
    ReleasedGil release;
    generation_ = std::make_unique<Generation>(engine.engine(), std::move(prompts), options);
  }
  NativeGeneration(const NativeGeneration&) = delete;
  NativeGeneration& operator=(const NativeGeneration&) = delete;

  ~NativeGeneration() {
    give_back();
    ReleasedGil release;
    generation_.reset();
  }

  // The next tokens as tuples, or None when all sequences are finished. One thread at a time: the caller sees to it.
  std::optional<nb::list> next(std::optional<nb::callable> processor) {
    Interrupt interrupt;
    const Call call{interrupt, processor};
    call_ = &call;
    bool more = false;
    try {
      more = compute_without_gil(interrupt, [&] { return generation_->next(interrupt.stop_check()); });
    } catch (...) {
      failed_ = true;
      give_back();
      throw;
    }
    if (!more) {
      give_back();
      return std::nullopt;
    }
    nb::list out;
    for (const GeneratedToken& token : generation_->tokens()) out.append(as_tuple(token));
    return out;
  }

  void cancel() {
    ReleasedGil release;
    generation_->cancel();
  }

  // Not during next(): the figures are not guarded.
  nb::dict stats() const {
    const GenerateStats& stats = generation_->stats();
    nb::dict out;
    out["n_prompt"] = stats.n_prompt;
    out["n_prompt_reused"] = stats.n_prompt_reused;
    out["n_generated"] = stats.n_generated;
    out["prompt_ms"] = stats.prompt_ms;
    out["generate_ms"] = stats.generate_ms;
    out["first_token_ms"] = stats.first_token_ms;
    return out;
  }

 private:
  struct Call {
    Interrupt& interrupt;
    const std::optional<nb::callable>& processor;
  };

  void go_on(Generation::Rest& rest, const std::vector<int32_t>& prompt, const GenerateOptions& options) {
    n_before_ = n_tokens(rest);
    ReleasedGil release;
    if (prompt.empty() && rest.pending.empty() && rest.session.n_past() > 0) {
      // Logits come with the computation of a token: that of the last one is done again.
      rest.pending.push_back(rest.session.tokens().back());
      rest.session.truncate(rest.session.n_past() - 1);
    }
    std::vector<int32_t> tokens = rest.pending;
    tokens.insert(tokens.end(), prompt.begin(), prompt.end());
    generation_ = std::make_unique<Generation>(std::move(rest.session), std::move(tokens), options);
  }

  // Ends a generation that goes on with a session: everything up to here belongs to it, unless it failed before the
  // first token: what it could not take would be in the way of all that follows.
  void give_back() {
    if (!session_) return;
    {
      ReleasedGil release;
      *rest_ = generation_->take_session();
      if (failed_ && generation_->stats().n_generated == 0) cut(*rest_, n_before_);
    }
    session_->give_back();
    session_.reset();
  }

  static nb::tuple as_tuple(const GeneratedToken& token) {
    // The library's text is valid UTF-8; "replace" keeps a mistake there from losing the token here.
    const nb::object text = nb::steal(
        PyUnicode_DecodeUTF8(token.text.data(), static_cast<Py_ssize_t>(token.text.size()), "replace"));
    return nb::make_tuple(token.id, text, token.logprob, token.index, token.sequence,
                          finish_reason_name(token.finish));
  }

  // Shows the processor a copy: a view of the engine's memory could be kept by the function and used later.
  void process(size_t sequence, std::span<float> logits) {
    if (exiting()) {
      throw CancelledError(error_text("generate", "Python", "a running one", "one that exits", "end threads before"));
    }
    nb::gil_scoped_acquire acquire;
    const Call& call = *call_;
    try {
      auto values = std::make_unique<float[]>(logits.size());
      float* data = values.get();
      std::copy(logits.begin(), logits.end(), data);
      nb::capsule owner(values.release(), [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
      (*call.processor)(sequence, LogitsRow(data, {logits.size()}, owner));
      std::copy(data, data + logits.size(), logits.begin());
    } catch (nb::python_error& error) {
      call.interrupt.store(std::move(error));
      throw CancelledError(error_text("generate", "logits_processor", "a result", "a Python error", "see the error"));
    }
  }

  std::unique_ptr<Generation> generation_;
  std::shared_ptr<NativeSession> session_;  // taken, until the generation ends
  Generation::Rest* rest_ = nullptr;        // of session_
  int64_t n_before_ = 0;                    // its tokens before this generation
  bool failed_ = false;
  const Call* call_ = nullptr;  // of the next() that is running
};

void make_generation(NativeGeneration* self, const NativeEngine& engine, std::vector<std::vector<int32_t>> prompts,
                     int64_t max_tokens, float temperature, int32_t top_k, float top_p, float min_p,
                     float repeat_penalty, int32_t repeat_last_n, std::optional<uint64_t> seed,
                     std::vector<std::string> stop, bool ignore_eos, bool context_shift, bool reuse, bool use_processor,
                     std::shared_ptr<NativeSession> session) {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  options.sampler = {temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed};
  options.stop = std::move(stop);
  options.ignore_eos = ignore_eos;
  options.context_shift = context_shift;
  options.reuse = reuse;
  new (self) NativeGeneration(engine, std::move(prompts), std::move(options), use_processor, std::move(session));
}

}  // namespace

void bind_generation(nb::module_& module) {
  nb::class_<NativeGeneration>(module, "Generation", "One pass over one or several prompts.")
      .def("__init__", &make_generation, nb::arg("engine"), nb::arg("prompts"), nb::kw_only(), nb::arg("max_tokens"),
           nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("repeat_penalty"),
           nb::arg("repeat_last_n"), nb::arg("seed").none(), nb::arg("stop"), nb::arg("ignore_eos"),
           nb::arg("context_shift"), nb::arg("reuse"), nb::arg("use_processor"), nb::arg("session").none())
      .def("next", &NativeGeneration::next, nb::arg("processor").none(),
           nb::sig("def next(self, processor: collections.abc.Callable[[int, numpy.ndarray], object] | None) -> "
                   "list[tuple[int, str, float, int, int, str]] | None"),
           "Tuples (id, text, logprob, index, sequence, finish reason), or None when all sequences are finished.")
      .def("cancel", &NativeGeneration::cancel, "Ends the generation within a token; may be called from any thread.")
      .def("stats", &NativeGeneration::stats, nb::sig("def stats(self) -> dict[str, typing.Any]"));
}

}  // namespace hotset::python
