// Vocabularies without a model, and the splitting of texts: what tests and tools ask for.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/engine.h"
#include "python/bindings.h"

namespace hotset::python {

namespace {

// A tokenizer that Python owns.
struct NativeTokenizer {
  std::shared_ptr<const Tokenizer> tokenizer;
};

std::vector<int32_t> encode(const NativeTokenizer& self, nb::bytes text, bool add_special, bool parse_special) {
  const std::string_view view(text.c_str(), text.size());
  ReleasedGil release;
  return self.tokenizer->encode(view, {add_special, parse_special});
}

nb::bytes decode(const NativeTokenizer& self, const std::vector<int32_t>& ids, bool special) {
  const std::string text = self.tokenizer->decode(ids, special);
  return nb::bytes(text.data(), text.size());
}

std::vector<size_t> lengths(const std::string& name, nb::bytes text) {
  return pre_token_lengths(name, std::string_view(text.c_str(), text.size()));
}

}  // namespace

void bind_tokenizer(nb::module_& module) {
  module.def("pre_token_lengths", &lengths, nb::arg("name"), nb::arg("text"),
             "Bytes of each piece that a pre-tokenizer (`tokenizer.ggml.pre`) cuts a text into.");
  nb::class_<NativeTokenizer>(module, "Tokenizer", "The tokenizer of a file, which may lack the model.")
      .def(
          "__init__",
          [](NativeTokenizer* self, const std::string& path) {
            std::shared_ptr<const Tokenizer> tokenizer;
            {
              ReleasedGil release;
              tokenizer = Model::load_tokenizer(path);
            }
            new (self) NativeTokenizer{std::move(tokenizer)};
          },
          nb::arg("path"))
      .def("encode", &encode, nb::arg("text"), nb::arg("add_special"), nb::arg("parse_special"))
      .def("decode", &decode, nb::arg("ids"), nb::arg("special"));
}

}  // namespace hotset::python
