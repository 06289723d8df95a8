// Finds the tokens of a vocabulary that are matched verbatim before anything else: user-defined and control tokens.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace hotset {

// A token that is matched verbatim. `text` is only read during construction.
struct SpecialToken {
  std::string_view text;
  int32_t id;
  bool always;  // matched in any text; else only where special tokens are asked for
};

// A token found in a text, bytes [begin, end).
struct SpecialMatch {
  size_t begin, end;
  int32_t id;
};

// Matcher for a set of tokens. Among overlapping occurrences the longest token wins, then the lower id, then the
// leftmost: the order in which llama.cpp takes them out of a text.
// Time O(n log n) and memory O(n) in the text; memory about 30 bytes per byte of the tokens' texts.
class SpecialTokens {
 public:
  SpecialTokens() = default;

  // Empty texts are ignored; the last of equal texts stays.
  explicit SpecialTokens(std::vector<SpecialToken> tokens);

  // Occurrences that do not overlap, in order of the text. `parse_special`: look for all tokens, else for those that
  // are matched always.
  std::vector<SpecialMatch> find(std::string_view text, bool parse_special) const;

 private:
  // An Aho-Corasick automaton over the texts read backwards, in breadth-first order. The text is scanned from its end;
  // at every byte the state is then the longest string that starts there and ends a token, and `shorter` leads to all
  // tokens that start there. Backwards, because a token that turns out to be blocked is replaced by the next shorter
  // one that starts at the same place, and so one entry per place is enough.
  struct Node {
    uint32_t first_child = 0;
    uint32_t fail = 0;                        // longest node that is a proper prefix of this node's string
    std::array<uint32_t, 2> shorter = {0, 0};  // nearest token along `fail`, by parse_special; 0 = none
    uint32_t length = 0;                      // bytes of this node's string
    int32_t id = -1;                          // the token that this string is
    uint16_t n_children = 0;
    uint8_t byte = 0;  // first byte of this node's string
    bool always = false;
  };

  void build_nodes(const std::vector<SpecialToken>& tokens);
  void link_nodes();
  uint32_t child(uint32_t node, uint8_t byte) const;
  uint32_t step(uint32_t node, uint8_t byte) const;
  bool is_token(uint32_t node, bool parse_special) const {
    return nodes_[node].id >= 0 && (parse_special || nodes_[node].always);
  }

  std::vector<Node> nodes_;
  std::array<uint32_t, 256> root_children_ = {};  // most bytes of most texts stay at the root
  std::array<bool, 2> any_ = {false, false};      // whether there are tokens to look for, by parse_special
};

}  // namespace hotset
