// What an engine has counted of its units, as a file of statistics.
#pragma once

#include <string>

#include "core/engine.h"

namespace hotset::cli {

// Writes a file as `hotset profile` does (docs/FORMATS.md, "Statistics"), whole or not at all. What was not counted is
// 0: a unit's mass, and overlaps. Throws Error when it cannot be written, or no token was computed.
void write_statistics(const std::string& path, const Model& model, const ActivityCounts& counts);

}  // namespace hotset::cli
