// `hotset tokenize` and `hotset detokenize`: text to a JSON list of token ids, and back.
#include "tools/common.h"
#include "tools/json.h"

namespace hotset::cli {

int cmd_tokenize(const Words& words) {
  Args args("tokenize", "Reads text from stdin (or -p, -f), bytes as they are; prints a JSON list of token ids.");
  ModelFlags flags;
  PromptFlags prompt;
  bool no_bos = false;
  EncodeOptions options;
  add_vocabulary_flags(args, flags);
  add_prompt_flags(args, prompt);
  args.flag("--no-bos", "do not add the tokens that the vocabulary puts around a text", no_bos);
  args.flag("--parse-special", "let text such as </s> become the control token", options.parse_special);
  if (parse_or_help(args, words)) return kExitDone;

  options.add_special = !no_bos;
  const auto tokenizer = Model::load_tokenizer(model_path(flags));
  const std::string text = args.given("-p") || args.given("-f") ? prompt_text(args, prompt) : read_stdin();
  JsonWriter json;
  json.value(tokenizer->encode(text, options));
  write_stdout(json.text() + "\n");
  return kExitDone;
}

int cmd_detokenize(const Words& words) {
  Args args("detokenize", "Reads a JSON list of token ids from stdin; prints their text, nothing added.");
  ModelFlags flags;
  bool special = false;
  add_vocabulary_flags(args, flags);
  args.flag("--special", "show control tokens", special);
  if (parse_or_help(args, words)) return kExitDone;

  const auto tokenizer = Model::load_tokenizer(model_path(flags));
  const std::vector<int32_t> ids = parse_json_int_list("stdin", read_stdin());
  check_token_ids("stdin", ids, tokenizer->n_vocab(), /*usage=*/false);
  write_stdout(tokenizer->decode(ids, special));
  return kExitDone;
}

}  // namespace hotset::cli
