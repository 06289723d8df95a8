// Model families as table rows: everything the planner needs to know about a family, no code per family.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/kinds.h"

namespace hotset {

const char* activation_name(Activation activation);                   // "silu", "relu", "relu2", ..
std::optional<Activation> parse_activation(const std::string& name);  // nullopt for an unknown one
std::string known_activations();                                      // their names, for messages

// One row per value of `general.architecture`; the defaults are the commonest. Layers of a family differ in their
// window alone. Biases are not a column: they are taken where a file has them.
struct Architecture {
  const char* name;
  NormKind norm = NormKind::kRms;
  Activation usual_activation = Activation::kSilu;  // for files that do not say; is_sparse() says if units are skipped
  bool gated = true;  // h = act(gate) * up, and the gate row detects; else h = act(up), and the up row detects
  Positions positions = Positions::kRope;
  RopeLayout rope = RopeLayout::kHalfSplit;  // with Positions::kRope
  bool is_parallel = false;       // attention and FFN read the same x, to which both are added
  bool has_fused_qkv = false;     // attn_qkv: rows of q, then of k, then of v
  bool has_head_norms = false;    // every head of q and k is normed before it is rotated
  bool has_post_norms = false;    // what attention and FFN give is normed before it is added
  bool scales_embedding = false;  // by sqrt(n_embd)
  // A file may have norms of x after each addition in place of those before (attn_output_norm, layer_output_norm, and no
  // output_norm), and an embedding and a head of another width, each with a projection.
  bool may_norm_after = false;
  // Where a file has a window, every n-th layer sees all positions all the same; 0: none does.
  int64_t full_layer_every = 0;
  // Layers that see all positions rotate by the file's base, those with a window by this one; 0: by the file's too.
  float rope_base_local = 0;
  // A model of so many layers whose file has no attention.scale divides scores by sqrt(n_embd / n_head), not by
  // sqrt(head_dim); 0: none does.
  int64_t n_layer_scaled_by_width = 0;
};

// Whether the family has no tensors and no order beside those of a plain serial layer.
bool is_plain(const Architecture& arch);

// nullptr when the family is not in the table.
const Architecture* find_architecture(const std::string& name);

// Comma-separated names of the table, of all rows or those that are asked for, for messages.
std::string known_architectures(bool (*is_wanted)(const Architecture&) = nullptr);

}  // namespace hotset
