// Bytes in and out of a command: stdin, stdout, stderr, files, and Ctrl-C.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "core/engine.h"

namespace hotset::cli {

// Exit codes of every command.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// Ctrl-C arrived while a command was waiting for input or output.
class Interrupted : public std::exception {};

// Whoever read stdout has gone; there is nobody left to tell anything.
class BrokenPipe : public std::exception {};

// To be called once, first. Sets up signals (first SIGINT: interrupted() becomes true; second: the process ends at
// once; SIGPIPE: ignored, see BrokenPipe), and sees to it that no file opened later is taken for a closed stdout.
void prepare_process();
bool interrupted();

// A StopCheck that is true once Ctrl-C was pressed.
StopCheck interrupt_check();

bool stdout_is_terminal();
bool stderr_is_terminal();

// Writes all bytes to stdout now, unbuffered. Throws BrokenPipe, Error (a full disk), and Interrupted, but that only
// where it would have to wait: after Ctrl-C a command may still say what it has.
void write_stdout(std::string_view bytes);

// Writes `hotset: line` to stderr; control characters are escaped so that it stays one line. Never throws.
void write_note(const std::string& line);

// Writes text to stderr as it is. Never throws.
void write_stderr(std::string_view text);

// Reads everything there is, bytes as they are. Throws Error (missing, a directory, above 1 GiB) and Interrupted.
std::string read_stdin();
std::string read_file(const std::string& path);

// Text that is safe to show: UTF-8 as it is, control characters and invalid bytes as \xHH.
std::string printable(std::string_view text);

// Length of the valid UTF-8 character at the start of `text`, 0 when there is none.
size_t utf8_length(std::string_view text);

// printf into a string.
std::string text_of(const char* format, ...) __attribute__((format(printf, 1, 2)));

// "8.05 MiB", "1.20 GiB".
std::string bytes_text(uint64_t n_bytes);

}  // namespace hotset::cli
