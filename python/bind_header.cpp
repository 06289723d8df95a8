// Binds the judgement of model files of which only the first bytes are here.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "core/judgement.h"
#include "python/bindings.h"

namespace hotset::python {

namespace {

// Name, first bytes and bytes in all of a file.
using Start = std::tuple<std::string, nb::bytes, uint64_t>;

nb::dict judge_starts(const std::vector<Start>& starts, const std::string& activation) {
  std::vector<FileStart> files;
  for (const auto& [name, bytes, file_bytes] : starts)
    files.push_back({name, std::as_bytes(std::span(bytes.c_str(), bytes.size())), file_bytes});
  const Judgement judgement = [&] {
    ReleasedGil release;
    return judge(files, {activation, {}});
  }();
  nb::dict out;
  out["n_needed"] = judgement.n_needed;
  out["type"] = judgement.type_text;
  out["size_bytes"] = judgement.size_bytes;
  out["memory_bytes"] = judgement.memory_bytes;
  return out;
}

}  // namespace

void bind_header(nb::module_& module) {
  module.def("judge_starts", &judge_starts, nb::arg("starts"), nb::arg("activation"),
             nb::sig("def judge_starts(starts: collections.abc.Sequence[tuple[str, bytes, int]], activation: str) -> "
                     "dict[str, typing.Any]"),
             "Loads a model without its data: of each shard its name, first bytes and bytes in all. Raises what "
             "loading would; `n_needed` of the result is how many first bytes of each file that takes, 0 where they "
             "suffice.");
}

}  // namespace hotset::python
