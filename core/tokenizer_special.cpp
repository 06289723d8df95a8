#include "core/tokenizer_special.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace hotset {

namespace {

bool less_backwards(const SpecialToken& a, const SpecialToken& b) {
  return std::lexicographical_compare(a.text.rbegin(), a.text.rend(), b.text.rbegin(), b.text.rend());
}

uint8_t byte_from_end(std::string_view text, size_t depth) {
  return static_cast<uint8_t>(text[text.size() - 1 - depth]);
}

}  // namespace

SpecialTokens::SpecialTokens(std::vector<SpecialToken> tokens) {
  std::stable_sort(tokens.begin(), tokens.end(), less_backwards);
  std::vector<SpecialToken> unique;
  for (const SpecialToken& token : tokens) {
    if (token.text.empty()) continue;
    if (!unique.empty() && unique.back().text == token.text) unique.pop_back();
    unique.push_back(token);
  }
  if (unique.empty()) return;
  for (const SpecialToken& token : unique) any_[0] = any_[0] || token.always;
  any_[1] = true;
  build_nodes(unique);
  link_nodes();
}

void SpecialTokens::build_nodes(const std::vector<SpecialToken>& tokens) {
  std::vector<std::pair<size_t, size_t>> ranges = {{0, tokens.size()}};  // tokens below each node
  nodes_.emplace_back();
  for (size_t node = 0; node < nodes_.size(); ++node) {
    const uint32_t depth = nodes_[node].length;
    auto [i, end] = ranges[node];
    if (tokens[i].text.size() == depth) {
      nodes_[node].id = tokens[i].id;
      nodes_[node].always = tokens[i].always;
      ++i;
    }
    nodes_[node].first_child = static_cast<uint32_t>(nodes_.size());
    while (i < end) {
      const uint8_t byte = byte_from_end(tokens[i].text, depth);
      const size_t begin = i;
      while (i < end && byte_from_end(tokens[i].text, depth) == byte) ++i;
      ++nodes_[node].n_children;
      nodes_.emplace_back();
      nodes_.back().length = depth + 1;
      nodes_.back().byte = byte;
      ranges.emplace_back(begin, i);
    }
  }
}

void SpecialTokens::link_nodes() {
  for (uint32_t i = 0; i < nodes_[0].n_children; ++i) root_children_[nodes_[1 + i].byte] = 1 + i;
  for (uint32_t parent = 0; parent < nodes_.size(); ++parent) {
    for (uint32_t i = 0; i < nodes_[parent].n_children; ++i) {
      Node& node = nodes_[nodes_[parent].first_child + i];
      node.fail = parent == 0 ? 0 : step(nodes_[parent].fail, node.byte);
      for (const bool parse_special : {false, true}) {
        node.shorter[parse_special] =
            is_token(node.fail, parse_special) ? node.fail : nodes_[node.fail].shorter[parse_special];
      }
    }
  }
}

uint32_t SpecialTokens::child(uint32_t node, uint8_t byte) const {
  if (node == 0) return root_children_[byte];
  const auto begin = nodes_.begin() + nodes_[node].first_child, end = begin + nodes_[node].n_children;
  const auto found = std::lower_bound(begin, end, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
  return found != end && found->byte == byte ? static_cast<uint32_t>(found - nodes_.begin()) : 0;
}

uint32_t SpecialTokens::step(uint32_t node, uint8_t byte) const {
  while (true) {
    const uint32_t to = child(node, byte);
    if (to != 0 || node == 0) return to;
    node = nodes_[node].fail;
  }
}

std::vector<SpecialMatch> SpecialTokens::find(std::string_view text, bool parse_special) const {
  if (!any_[parse_special]) return {};
  struct Candidate {
    uint32_t node;
    size_t begin;
  };
  const auto comes_later = [&](const Candidate& a, const Candidate& b) {
    const Node &x = nodes_[a.node], &y = nodes_[b.node];
    if (x.length != y.length) return x.length < y.length;
    return std::tie(x.id, a.begin) > std::tie(y.id, b.begin);
  };
  std::vector<Candidate> found;
  uint32_t state = 0;
  for (size_t begin = text.size(); begin-- > 0;) {
    state = step(state, static_cast<uint8_t>(text[begin]));
    const uint32_t node = is_token(state, parse_special) ? state : nodes_[state].shorter[parse_special];
    if (node != 0) found.push_back({node, begin});
  }

  std::priority_queue<Candidate, std::vector<Candidate>, decltype(comes_later)> queue(comes_later, std::move(found));
  std::vector<SpecialMatch> matches;
  std::vector<bool> taken(queue.empty() ? 0 : text.size());
  while (!queue.empty()) {
    const Candidate candidate = queue.top();
    queue.pop();
    const Node& node = nodes_[candidate.node];
    const size_t end = candidate.begin + node.length;
    // All accepted tokens are at least this long, so an overlap covers the first or the last byte.
    if (taken[candidate.begin]) continue;
    if (taken[end - 1]) {
      if (node.shorter[parse_special] != 0) queue.push({node.shorter[parse_special], candidate.begin});
      continue;
    }
    std::fill(taken.begin() + static_cast<std::ptrdiff_t>(candidate.begin),
              taken.begin() + static_cast<std::ptrdiff_t>(end), true);
    matches.push_back({candidate.begin, end, node.id});
  }
  std::sort(matches.begin(), matches.end(),
            [](const SpecialMatch& a, const SpecialMatch& b) { return a.begin < b.begin; });
  return matches;
}

}  // namespace hotset
