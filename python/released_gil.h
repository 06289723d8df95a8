// Giving up the GIL around library calls, safe against an interpreter that exits meanwhile.
#pragma once

#include <nanobind/nanobind.h>

namespace hotset::python {

// Gives up the GIL for a scope. Use it instead of nanobind::gil_scoped_release: before Python 3.14 a daemon thread that
// asks for the GIL after the interpreter began to exit is ended by pthread_exit, and that unwinding through C++ aborts
// the process. So the module counts the threads that are inside such scopes, and at exit
//
//   main thread (atexit)                     other thread
//   exiting = true                           its StopCheck sees `exiting`: the computation ends soon
//   gives up the GIL, waits for count == 0   scope ends: exiting ? count -= 1, sleeps for ever, without the GIL
//   exit goes on                                         : takes the GIL (nobody holds it for long), count -= 1
//                                            scope begins: exiting ? gives up the GIL, sleeps for ever
//
// `exiting` is set and `count` grows only with the GIL held. The main thread itself keeps the GIL once it is exiting.
// For the same reason native calls run no Python code outside such scopes: what they need is looked up at import.
class ReleasedGil {
 public:
  ReleasedGil();
  ~ReleasedGil();
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_ = nullptr;  // stays nullptr where the GIL is kept
};

// Whether the interpreter is exiting: callbacks must not enter Python any more and computations should stop.
bool exiting();

// Registers the exit handler; called once, when the module is imported.
void register_exit_handler();

}  // namespace hotset::python
