#include "tools/recipe.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "tools/io.h"

namespace hotset::cli {
namespace {

// Positions of a shape's numbers by their names.
struct ShapeKey {
  const char* name;
  int64_t SynthShape::* target;
};
constexpr ShapeKey kShapeKeys[] = {
    {"n_layer", &SynthShape::n_layer}, {"n_embd", &SynthShape::n_embd},       {"n_ff", &SynthShape::n_ff},
    {"n_head", &SynthShape::n_head},   {"n_head_kv", &SynthShape::n_head_kv}, {"head_dim", &SynthShape::head_dim},
    {"n_rot", &SynthShape::n_rot},     {"n_vocab", &SynthShape::n_vocab},     {"n_ctx", &SynthShape::n_ctx},
};

std::vector<std::string> parts_of(const std::string& text, char separator) {
  std::vector<std::string> out;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) out.push_back(part);
  return out;
}

[[noreturn]] void unknown(const std::string& where, const std::string& what, const std::string& name,
                          const std::vector<std::string>& known) {
  std::string list;
  for (const std::string& each : known) list += (list.empty() ? "" : ", ") + each;
  throw UsageError(
      error_text(where, "unknown " + what, list, quoted(name), "did you mean " + nearest(name, known) + "?"));
}

SynthShape named_shape(const std::string& where, const std::string& name) {
  std::vector<std::string> names;
  for (const SynthShape& shape : synth_shapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  unknown(where, "shape", name, names);
}

void set_number(const std::string& where, const std::string& part, SynthShape& shape) {
  const size_t equals = part.find('=');
  const std::string name = part.substr(0, equals);
  std::vector<std::string> names;
  for (const ShapeKey& key : kShapeKeys) {
    names.push_back(key.name);
    if (name != key.name) continue;
    const std::string value = equals == std::string::npos ? "" : part.substr(equals + 1);
    shape.*key.target = parse_int(where, "--shape " + name, value, {1, int64_t{1} << 30});
    return;
  }
  unknown(where, "number of --shape", name, names);
}

// NAME, n_layer=2,n_embd=64,.., or a name with numbers that replace its own.
SynthShape parse_shape(const std::string& where, const std::string& text) {
  if (text.empty()) throw UsageError(error_text(where, "no shape", "--shape NAME|n_layer=..,..", "nothing", "add it"));
  const std::vector<std::string> parts = parts_of(text, ',');
  const bool is_named = parts.empty() || parts[0].find('=') == std::string::npos;
  SynthShape shape = is_named ? named_shape(where, parts.empty() ? text : parts[0]) : SynthShape();
  for (size_t i = is_named ? 1 : 0; i < parts.size(); ++i) set_number(where, parts[i], shape);
  if (is_named) shape.name = text;
  return shape;
}

// "0.26:0.8".
void parse_skew(const std::string& where, const std::string& text, SynthSpec& spec) {
  spec.skew_share = 0;
  if (text.empty()) return;
  const size_t colon = text.find(':');
  const auto number = [&](const std::string& part) {
    return static_cast<double>(parse_real(where, "--skew (share of units:share of firings)", part, {0, 1, true}));
  };
  spec.skew_top = number(text.substr(0, colon));
  spec.skew_share = number(colon == std::string::npos ? "" : text.substr(colon + 1));
}

// A recipe's words as words of a command line.
std::vector<std::string> command_words(const std::string& recipe) {
  std::vector<std::string> words;
  bool takes_value = false;  // the word before was a flag that waits for one
  std::istringstream stream(recipe);
  for (std::string word; stream >> word;) {
    const bool is_flag = word.rfind("--", 0) == 0;
    const bool has_value = word.find('=') != std::string::npos;
    if (takes_value || is_flag)
      words.push_back(word);
    else if (word == "pure" || has_value)
      words.push_back("--" + word);
    else
      words.push_back("--arch=" + word);
    takes_value = !takes_value && is_flag && !has_value && word != "--pure";
  }
  return words;
}

}  // namespace

void add_synth_flags(Args& args, SynthFlags& flags) {
  args.text("--arch", "NAME", "model family: " + known_architectures(is_plain), flags.arch);
  args.text("--shape", "NAME|N=..", "llama-1b, opt-6.7b, .. or n_layer=..,n_embd=..,n_ff=..,n_head=..", flags.shape);
  args.text("--type", "TYPE", "weight type as of 'hotset quantize' (q4_0)", flags.type);
  args.flag("--pure", "one type throughout", flags.pure);
  args.choice("--layout", "neuron|gguf", "ffn_down_t, or ffn_down for other engines", flags.layout);
  args.text("--activation", "NAME", known_activations() + "; default: the family's", flags.activation);
  args.real("--sparsity", "mean share of units that do not fire (0.9)", flags.sparsity, {0.01f, 0.999f});
  args.text("--skew", "UNITS:SHARE", "this share of units has that share of firings (0.26:0.8)", flags.skew);
  args.integer("--seed", "of the random weights (1)", flags.seed, {0, std::numeric_limits<int64_t>::max()});
}

SynthSpec synth_spec(const std::string& where, const SynthFlags& flags) {
  SynthSpec spec;
  spec.shape = parse_shape(where, flags.shape);
  spec.arch = flags.arch.empty() ? spec.shape.arch : flags.arch;
  if (spec.arch.empty())
    throw UsageError(
        error_text(where, "no model family", "--arch, one of " + known_architectures(is_plain), "nothing", "add it"));
  if (!find_architecture(spec.arch)) {
    std::vector<std::string> known;
    std::istringstream stream(known_architectures(is_plain));
    for (std::string name; stream >> name;) known.push_back(name.substr(0, name.find(',')));
    unknown(where, "model family", spec.arch, known);
  }
  spec.activation = flags.activation;
  spec.type = flags.type;
  spec.pure = flags.pure;
  spec.neuron_major = flags.layout == "neuron";
  spec.seed = static_cast<uint64_t>(flags.seed);
  spec.sparsity = static_cast<double>(flags.sparsity);
  parse_skew(where, flags.skew, spec);
  return spec;
}

SynthSpec parse_recipe(const std::string& where, const std::string& recipe) {
  Args args(where, "A recipe: the options of 'hotset synth', as words of one text.");
  SynthFlags flags;
  add_synth_flags(args, flags);
  if (args.parse(command_words(recipe)))
    throw UsageError(error_text(where, "recipe", "a model", quoted(recipe), "see 'hotset synth --help'"));
  return synth_spec(where, flags);
}

SynthOptions synth_options(int64_t n_threads) {
  SynthOptions options;
  options.n_threads = static_cast<int32_t>(n_threads);
  options.stop = interrupt_check();
  if (!stderr_is_terminal()) return options;
  options.progress = [](uint64_t n_done, uint64_t n_total) {
    write_stderr(n_done < n_total
                     ? text_of("\r%3.0f %% ", 100.0 * static_cast<double>(n_done) / static_cast<double>(n_total))
                     : "\r\033[K");
  };
  return options;
}

}  // namespace hotset::cli
