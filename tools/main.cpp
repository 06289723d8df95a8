// The `hotset` command: finds the subcommand, turns errors into one line and an exit code.
#include <algorithm>
#include <new>

#include "tools/common.h"

namespace hotset::cli {
namespace {

struct Command {
  const char* name;
  int (*function)(const Words&);
  const char* summary;
};

constexpr Command kCommands[] = {
    {"run", cmd_run, "complete a prompt"},
    {"bench", cmd_bench, "measure tokens per second"},
    {"perplexity", cmd_perplexity, "measure how well a model predicts a text"},
    {"kld", cmd_kld, "compare a mode's predictions with dense ones"},
    {"tokenize", cmd_tokenize, "text to token ids"},
    {"detokenize", cmd_detokenize, "token ids to text"},
    {"logits", cmd_logits, "write the logits of every position to a .npy file"},
    {"inspect", cmd_inspect, "show what a model file holds and whether it will run"},
    {"plan", cmd_plan, "show where a model would lie, what it takes and how fast it would be"},
    {"quantize", cmd_quantize, "write a model file with other weight types"},
    {"synth", cmd_synth, "write a model with random weights and the sparsity asked for"},
    {"doctor", cmd_doctor, "show what this machine and this build offer"},
};

constexpr const char* kPython[] = {"chat", "convert", "profile", "report", "train-predictor", "place", "serve"};

std::string usage_text() {
  std::string out = "usage: hotset COMMAND [options]\n\ncommands:\n";
  for (const Command& command : kCommands) out += text_of("  %-12s %s\n", command.name, command.summary);
  out += "\nwith the Python package (pip install hotset):\n ";
  for (const char* name : kPython) out += cat(" ", name);
  return out + "\n\n'hotset COMMAND --help' lists the options of a command; 'hotset --version' shows the version.\n";
}

[[noreturn]] void unknown_command(const std::string& name) {
  if (std::find(std::begin(kPython), std::end(kPython), name) != std::end(kPython)) {
    throw UsageError(error_text("hotset", "command is part of the Python package", "a native command", quoted(name),
                                "run 'pip install hotset'"));
  }
  Words known(std::begin(kPython), std::end(kPython));
  for (const Command& command : kCommands) known.push_back(command.name);
  throw UsageError(error_text("hotset", "unknown command", "one of 'hotset --help'", quoted(name),
                              "did you mean " + nearest(name, known) + "?"));
}

int dispatch(const Words& words) {
  if (words.empty()) {
    write_stderr(usage_text());
    return kExitUsage;
  }
  if (words[0] == "-h" || words[0] == "--help" || words[0] == "help") {
    write_stdout(usage_text());
    return kExitDone;
  }
  if (words[0] == "--version" || words[0] == "version") {
    write_stdout(cat("hotset ", version(), " (", build_commit(), ")\n"));
    return kExitDone;
  }
  for (const Command& command : kCommands) {
    if (words[0] == command.name) return command.function(Words(words.begin() + 1, words.end()));
  }
  unknown_command(words[0]);
}

// Reports in the shape of every error; what comes from outside the library is put into that shape.
int report(const std::string& what, int exit_code) {
  const bool shaped = !what.empty() && what[0] == '[';
  write_note("error: " + (shaped ? what
                                 : error_text("hotset", "unexpected failure", "none", what,
                                              "report this with the command that led here")));
  return exit_code;
}

// Leaves the line that shows progress and "^C".
int end_interrupted() {
  if (stderr_is_terminal()) write_stderr("\n");
  return kExitInterrupted;
}

int guarded(const Words& words) {
  try {
    return dispatch(words);
  } catch (const BrokenPipe&) {
    return kExitDone;  // the reader has what it wanted, as in `hotset run .. | head -c 100`
  } catch (const Interrupted&) {
    return end_interrupted();
  } catch (const CancelledError&) {
    return end_interrupted();
  } catch (const UsageError& error) {
    return report(error.what(), kExitUsage);
  } catch (const std::invalid_argument& error) {
    return report(error.what(), kExitUsage);
  } catch (const std::bad_alloc&) {
    return report(error_text("memory", "out of memory", "enough free memory", "a refused allocation",
                             "use a smaller -c or -b, or a smaller model"),
                  kExitFailed);
  } catch (const std::exception& error) {
    return report(error.what(), kExitFailed);
  }
}

}  // namespace
}  // namespace hotset::cli

int main(int argc, char** argv) {
  hotset::cli::prepare_process();
  return hotset::cli::guarded(hotset::cli::Words(argv + std::min(argc, 1), argv + argc));
}
