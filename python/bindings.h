// What the parts of the Python module share: calling the library without the GIL, and Ctrl-C while it computes.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/engine.h"
#include "python/released_gil.h"

namespace hotset::python {

namespace nb = nanobind;

// Rule of this module: whoever calls something that may compute, wait or take a lock of the library gives the GIL up
// first. The library calls back (log, interrupt check, logits processor) while it holds its locks and those callbacks
// take the GIL, so the other order would deadlock.

// Carries a Python error across library code, which only knows CancelledError. Made and destroyed with the GIL held.
class Interrupt {
 public:
  Interrupt();

  // A check for the library to call without the GIL: true when the interpreter exits or, looked for every 50 ms, when a
  // signal handler raised. Signals only on the main thread: Python runs handlers nowhere else.
  StopCheck stop_check();

  // Keeps `error` for rethrow; the GIL must be held. The caller then ends the computation with CancelledError.
  void store(nb::python_error error);

  // Throws the stored error, if any; the GIL must be held.
  void rethrow();

 private:
  bool pending_signal();

  bool main_thread_;
  std::chrono::steady_clock::time_point last_look_;
  std::optional<nb::python_error> error_;
};

// Runs `compute()` without the GIL. A Python error that was stored in `interrupt` meanwhile wins over its outcome.
template <class Compute>
auto compute_without_gil(Interrupt& interrupt, Compute&& compute) {
  const auto released = [&] {
    ReleasedGil release;
    return compute();
  };
  try {
    if constexpr (std::is_void_v<decltype(compute())>) {
      released();
      interrupt.rethrow();
    } else {
      auto result = released();
      interrupt.rethrow();
      return result;
    }
  } catch (const Error&) {
    interrupt.rethrow();
    throw;
  }
}

// A shared library object that Python owns: released without the GIL, because its destructor may wait for a lock.
template <class T>
class Owned {
 public:
  explicit Owned(std::shared_ptr<T> object) : object_(std::move(object)) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    ReleasedGil release;
    object_.reset();
  }
  const std::shared_ptr<T>& shared() const { return object_; }
  T& operator*() const { return *object_; }
  T* operator->() const { return object_.get(); }

 private:
  std::shared_ptr<T> object_;
};

// A model with the engine that runs it; what `hotset.Model` holds.
class NativeEngine {
 public:
  NativeEngine(std::shared_ptr<const Model> model, std::shared_ptr<Engine> engine)
      : model_(std::move(model)), engine_(std::move(engine)) {}
  const Model& model() const { return *model_; }
  const std::shared_ptr<const Model>& shared_model() const { return model_.shared(); }
  const std::shared_ptr<Engine>& engine() const { return engine_.shared(); }

 private:
  Owned<const Model> model_;
  Owned<Engine> engine_;
};

// A session that Python owns: what it holds, and tokens that are to be added before anything else. One call at a time
// has it; a second one is told so. All of its functions are called with the GIL held.
class NativeSession {
 public:
  explicit NativeSession(Generation::Rest rest) : rest_(std::move(rest)) {}
  NativeSession(const NativeSession&) = delete;
  NativeSession& operator=(const NativeSession&) = delete;
  ~NativeSession() {
    ReleasedGil release;
    rest_.reset();
  }

  // Calls `function(Generation::Rest&)`. Throws std::invalid_argument while another call or a generation has the
  // session.
  template <class Function>
  auto use(Function&& function) {
    const Lease lease(*this);
    return function(*rest_);
  }

  // What use() does, in two halves, for a generation.
  Generation::Rest& take();
  void give_back() { is_busy_ = false; }

 private:
  struct Lease {
    explicit Lease(NativeSession& session_in) : session(session_in) { session.take(); }
    ~Lease() { session.give_back(); }
    NativeSession& session;
  };

  std::optional<Generation::Rest> rest_;
  bool is_busy_ = false;  // guarded by the GIL
};

// Tokens of a session, of which it may not have computed the last yet.
inline int64_t n_tokens(const Generation::Rest& rest) {
  return rest.session.n_past() + static_cast<int64_t>(rest.pending.size());
}

// Cuts what a session holds to its first n tokens, no more than there are. May wait for a lock.
void cut(Generation::Rest& rest, int64_t n);

void bind_session(nb::module_& module);
void bind_engine(nb::module_& module);
void bind_generation(nb::module_& module);
void bind_header(nb::module_& module);
void bind_plan(nb::module_& module);
void bind_compare(nb::module_& module);
void bind_tensors(nb::module_& module);
void bind_profile(nb::module_& module);
void bind_tokenizer(nb::module_& module);

}  // namespace hotset::python
