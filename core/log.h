// Messages of the library. It never prints: whoever creates a Model or Engine passes a sink, or silence is kept.
#pragma once

#include <functional>
#include <string>

namespace hotset {

enum class LogLevel { kInfo, kWarning };

// Receives one line without a newline. Called from the thread that called the library; must not throw.
using LogSink = std::function<void(LogLevel, const std::string&)>;

// Sends `line` to `sink` if there is one.
inline void log_to(const LogSink& sink, LogLevel level, const std::string& line) {
  if (sink) sink(level, line);
}

}  // namespace hotset
