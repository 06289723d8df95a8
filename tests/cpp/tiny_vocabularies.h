// Small complete vocabularies of both kinds, for tests and fuzz targets.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>

#include "core/tokenizer.h"

namespace hotset {

// The id of a token text, -1 if there is none.
inline int32_t id_of(const TokenizerData& data, const std::string& token) {
  const auto found = std::find(data.tokens.begin(), data.tokens.end(), token);
  return found == data.tokens.end() ? -1 : static_cast<int32_t>(found - data.tokens.begin());
}

// UTF-8 of a code point below U+0800.
inline std::string two_byte_utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// Byte-level: <s>, </s>, <sep> (user-defined), every byte, and some words. "qrs" is reached by no merge; the merge
// "x y" makes no token.
inline TokenizerData tiny_bpe() {
  TokenizerData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  data.tokens = {"<s>", "</s>", "<sep>"};
  data.types = {TokenType::kControl, TokenType::kControl, TokenType::kUserDefined};
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    data.tokens.push_back(two_byte_utf8(is_visible ? byte : next++));
  }
  const std::string space = two_byte_utf8(0x120);
  for (const std::string& word : {std::string("aa"), std::string("aaaa"), std::string("he"), std::string("the"),
                                  space + "the", space + "t", std::string("xyz"), std::string("qrs")}) {
    data.tokens.push_back(word);
  }
  data.types.resize(data.tokens.size(), TokenType::kNormal);
  data.merges = {"h e", "t he", space + " the", space + " t", "a a", "aa aa", "x y", "xy z"};
  return data;
}

// The same tokens split as Llama 3 does.
inline TokenizerData tiny_llama3() {
  TokenizerData data = tiny_bpe();
  data.pre = "llama-bpe";
  return data;
}

// SentencePiece: <unk>, <s>, </s>, byte tokens, <sep> (user-defined), and some words with their pieces.
inline TokenizerData tiny_spm() {
  TokenizerData data;
  data.model = "llama";
  data.tokens = {"<unk>", "<s>", "</s>"};
  data.types = {TokenType::kUnknown, TokenType::kControl, TokenType::kControl};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    data.tokens.push_back(name);
  }
  data.types.resize(data.tokens.size(), TokenType::kByte);
  data.tokens.push_back("<sep>");
  data.types.push_back(TokenType::kUserDefined);
  const std::string space = "\xe2\x96\x81";
  for (const std::string& piece :
       {std::string("he"), std::string("the"), space + "the", space + "t", std::string("aa"), space + space,
        std::string("aaaa"), space, std::string("a"), std::string("t"), std::string("h"), std::string("e"),
        std::string("<"), std::string("s>"), std::string("</"), std::string("s"), std::string(">")}) {
    data.tokens.push_back(piece);
  }
  data.types.resize(data.tokens.size(), TokenType::kNormal);
  for (size_t id = 0; id < data.tokens.size(); ++id) data.scores.push_back(-static_cast<float>(id));
  data.unk_id = 0;
  data.bos_id = 1;
  data.eos_id = 2;
  data.add_bos = true;
  return data;
}

}  // namespace hotset
