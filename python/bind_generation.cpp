// Binds a generation: options in, tokens out, the logits processor and cancelling.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
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
  NativeGeneration(const NativeEngine& engine, std::vector<std::vector<int32_t>> prompts, GenerateOptions options,
                   bool use_processor) {
    if (use_processor) {
      options.logits_processor = [this](size_t sequence, std::span<float> logits) { process(sequence, logits); };
    }
    ReleasedGil release;
    generation_ = std::make_unique<Generation>(engine.engine(), std::move(prompts), options);
  }
  NativeGeneration(const NativeGeneration&) = delete;
  NativeGeneration& operator=(const NativeGeneration&) = delete;

  ~NativeGeneration() {
    ReleasedGil release;
    generation_.reset();
  }

  // The next tokens as tuples, or None when all sequences are finished. One thread at a time: the caller sees to it.
  std::optional<nb::list> next(std::optional<nb::callable> processor) {
    Interrupt interrupt;
    const Call call{interrupt, processor};
    call_ = &call;
    const bool more = compute_without_gil(interrupt, [&] { return generation_->next(interrupt.stop_check()); });
    if (!more) return std::nullopt;
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
  const Call* call_ = nullptr;  // of the next() that is running
};

void make_generation(NativeGeneration* self, const NativeEngine& engine, std::vector<std::vector<int32_t>> prompts,
                     int64_t max_tokens, float temperature, int32_t top_k, float top_p, float min_p,
                     float repeat_penalty, int32_t repeat_last_n, std::optional<uint64_t> seed,
                     std::vector<std::string> stop, bool ignore_eos, bool context_shift, bool use_processor) {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  options.sampler = {temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed};
  options.stop = std::move(stop);
  options.ignore_eos = ignore_eos;
  options.context_shift = context_shift;
  new (self) NativeGeneration(engine, std::move(prompts), std::move(options), use_processor);
}

}  // namespace

void bind_generation(nb::module_& module) {
  nb::class_<NativeGeneration>(module, "Generation", "One pass over one or several prompts.")
      .def("__init__", &make_generation, nb::arg("engine"), nb::arg("prompts"), nb::kw_only(), nb::arg("max_tokens"),
           nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("repeat_penalty"),
           nb::arg("repeat_last_n"), nb::arg("seed").none(), nb::arg("stop"), nb::arg("ignore_eos"),
           nb::arg("context_shift"), nb::arg("use_processor"))
      .def("next", &NativeGeneration::next, nb::arg("processor").none(),
           nb::sig("def next(self, processor: collections.abc.Callable[[int, numpy.ndarray], object] | None) -> "
                   "list[tuple[int, str, float, int, int, str]] | None"),
           "Tuples (id, text, logprob, index, sequence, finish reason), or None when all sequences are finished.")
      .def("cancel", &NativeGeneration::cancel, "Ends the generation within a token; may be called from any thread.")
      .def("stats", &NativeGeneration::stats, nb::sig("def stats(self) -> dict[str, typing.Any]"));
}

}  // namespace hotset::python
