#include "core/engine.h"

#ifndef HOTSET_VERSION
#define HOTSET_VERSION "0"
#endif
#ifndef HOTSET_COMMIT
#define HOTSET_COMMIT "unknown"
#endif

namespace hotset {

const char* version() { return HOTSET_VERSION; }
const char* build_commit() { return HOTSET_COMMIT; }

}  // namespace hotset
