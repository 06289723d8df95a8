// Binds the comparison of an engine with dense execution on the same weights.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "python/bindings.h"

namespace hotset::python {
namespace {

// Dense execution with everything else as `engine` has it.
std::shared_ptr<Engine> dense_engine(const std::shared_ptr<const Model>& model, const std::shared_ptr<Engine>& engine) {
  const EngineInfo info = engine->info();
  EngineOptions options;
  options.mode = "dense";
  options.device = info.device;
  options.isa = info.isa;
  options.kv_type = info.kv_type;
  options.n_ctx = info.n_ctx;
  options.n_threads = info.n_threads;
  options.weights_from = engine;
  return Engine::create(model, options);
}

nb::dict kl_divergence_from_dense(const NativeEngine& self, const std::vector<int32_t>& tokens, int64_t n_ctx) {
  Interrupt interrupt;
  const KldResult result = compute_without_gil(interrupt, [&] {
    const auto base = dense_engine(self.shared_model(), self.engine());
    return kl_divergence(*base, *self.engine(), tokens, n_ctx, {}, interrupt.stop_check());
  });
  nb::dict out;
  out["mean_kld"] = result.mean_kld;
  out["kld_error"] = result.kld_error;
  out["kld_p999"] = result.kld_p999;
  out["kld_max"] = result.kld_max;
  out["same_top"] = result.same_top;
  out["ppl"] = result.other.ppl();
  out["ppl_base"] = result.base.ppl();
  out["n_tokens"] = result.n_scored;
  return out;
}

}  // namespace

void bind_compare(nb::module_& module) {
  module.def("kl_divergence", &kl_divergence_from_dense, nb::arg("engine"), nb::arg("tokens"), nb::arg("n_ctx"),
             nb::sig("def kl_divergence(engine: Engine, tokens: collections.abc.Sequence[int], n_ctx: int) -> dict[str, typing.Any]"),
             "How far an engine's predictions are from dense ones on the same weights.");
}

}  // namespace hotset::python
