#include "python/released_gil.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace hotset::python {

namespace {

namespace nb = nanobind;

// Per process, as the interpreter is.
std::atomic<bool> is_exiting{false};
std::atomic<int> n_released{0};
unsigned long exiting_thread = 0;  // written before is_exiting

// A thread that is stuck in a user's function cannot be waited for; a crash at exit is then left to chance.
constexpr int kLongestWaitMs = 5000;

[[noreturn]] void sleep_for_ever() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

void wait_for_threads() {
  exiting_thread = PyThread_get_thread_ident();
  is_exiting = true;
  PyThreadState* state = PyEval_SaveThread();
  for (int ms = 0; n_released > 0 && ms < kLongestWaitMs; ++ms) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  PyEval_RestoreThread(state);
}

}  // namespace

bool exiting() { return is_exiting; }

ReleasedGil::ReleasedGil() {
  if (is_exiting) {
    if (PyThread_get_thread_ident() == exiting_thread) return;
    PyEval_SaveThread();
    sleep_for_ever();
  }
  ++n_released;
  state_ = PyEval_SaveThread();
}

ReleasedGil::~ReleasedGil() {
  if (!state_) return;
  if (is_exiting) {
    --n_released;
    sleep_for_ever();
  }
  PyEval_RestoreThread(state_);
  --n_released;
}

void register_exit_handler() {
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&wait_for_threads));
}

}  // namespace hotset::python
