// Which type each tensor of a quantised file gets.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace hotset {

// A named choice of types, numbered as llama.cpp numbers them in `general.file_type`.
struct Mixture {
  const char* name;  // lower case
  DType base;        // what no rule names
  uint32_t file_type;
};

// Case does not matter. nullptr when there is none.
const Mixture* find_mixture(const std::string& name);

// "q8_0, q4_0, ..." for messages.
std::string known_mixtures();

// What the choice depends on, beside the tensor's name.
struct MixtureModel {
  std::string architecture;
  int64_t n_layer = 0;
  int64_t n_gqa = 1;           // query heads per key/value head
  bool tied = false;           // no output.weight: token_embd is the head
  bool pure = false;           // the base type everywhere
};

// The type for a weight matrix, before row lengths are looked at. `name` is that of the standard layout or ffn_down_t.
DType mixture_type(const Mixture& mixture, const MixtureModel& model, const std::string& name);

}  // namespace hotset
