// Errors of the library: one hierarchy, one message shape.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace hotset {

// Base of everything the library throws for bad input, missing files, wrong shapes, lack of memory and device trouble.
// Caller mistakes (a negative count, an unknown option value) are std::invalid_argument instead.
// what() always reads `[where] what: expected X, got Y; do Z`, see error_text.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The bytes of a model file or sidecar are not what the format says.
class ModelFormatError : public Error {
 public:
  using Error::Error;
};

// The file is well formed but names an architecture, tensor type or tokenizer this build cannot run.
class UnsupportedModelError : public Error {
 public:
  using Error::Error;
};

// A prompt or a generation needs more positions than the context has.
class ContextLengthError : public Error {
 public:
  using Error::Error;
};

// Memory for weights, KV cache or buffers cannot be had.
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

// A device is missing, failed, or was asked for something it cannot do.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// The step was stopped by Session::cancel or by the caller's interrupt check.
class CancelledError : public Error {
 public:
  using Error::Error;
};

// Concatenates anything streamable into a string.
template <class... T>
std::string cat(const T&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// Composes the message of every error: where it happened, what is wrong, what was expected, what came, what to do.
inline std::string error_text(const std::string& where, const std::string& what, const std::string& expected,
                              const std::string& got, const std::string& remedy) {
  return cat("[", where, "] ", what, ": expected ", expected, ", got ", got, "; ", remedy);
}

// Quotes untrusted bytes for a message: at most `limit` bytes, everything outside printable ASCII as \xHH.
std::string quoted(const std::string& bytes, size_t limit = 80);

}  // namespace hotset

// Checks that stay in release builds: a violated internal promise becomes an Error instead of undefined behaviour.
#define HS_CHECK(condition, where)                                                                           \
  do {                                                                                                       \
    if (!(condition))                                                                                        \
      throw ::hotset::Error(::hotset::error_text(where, "internal check failed", #condition, "the opposite", \
                                                 "report this with the command that led here"));             \
  } while (0)
