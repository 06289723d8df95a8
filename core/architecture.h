// Model families as table rows: everything the planner needs to know about a family, no code per family.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/kinds.h"

namespace hotset {

const char* activation_name(Activation activation);                   // "silu", "relu", "relu2", "drelu"
std::optional<Activation> parse_activation(const std::string& name);  // nullopt for an unknown one
std::string known_activations();                                      // their names, for messages

// One row per value of `general.architecture`. All layers of today's families are alike. Biases are not a column: they
// are taken where a file has them.
struct Architecture {
  const char* name;
  NormKind norm;
  Activation usual_activation;  // for files that do not say
  bool gated;                   // h = act(gate) * up, and the gate row detects; else h = act(up), and the up row detects
  Positions positions;
  RopeLayout rope;  // with Positions::kRope
};

// nullptr when the family is not in the table.
const Architecture* find_architecture(const std::string& name);

// Comma-separated names of the table, for messages.
std::string known_architectures();

}  // namespace hotset
