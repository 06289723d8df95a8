// Binds sessions: conversations that are held, cut, copied, saved and loaded.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "python/bindings.h"

namespace hotset::python {

Generation::Rest& NativeSession::take() {
  if (is_busy_)
    throw std::invalid_argument(error_text("session", "use", "one at a time", "a second one while it generates",
                                           "end or close the stream first, or fork the session before"));
  is_busy_ = true;
  return *rest_;
}

void cut(Generation::Rest& rest, int64_t n) {
  const int64_t n_held = std::min(n, rest.session.n_past());
  rest.pending.resize(static_cast<size_t>(n - n_held));
  rest.session.truncate(n_held);
}

namespace {

using SharedSession = std::shared_ptr<NativeSession>;
using Ids = std::vector<int32_t>;

// Computes what is still to be added.
void add_pending(Generation::Rest& rest, const StopCheck& stop) {
  if (rest.pending.empty()) return;
  rest.session.prefill(rest.pending, stop);
  rest.pending.clear();
}

SharedSession open_session(const NativeEngine& engine) {
  ReleasedGil release;
  return std::make_shared<NativeSession>(Generation::Rest{engine.engine()->open_session(), {}});
}

SharedSession load_session(const NativeEngine& engine, const std::string& path) {
  ReleasedGil release;
  return std::make_shared<NativeSession>(Generation::Rest{engine.engine()->load_session(path), {}});
}

// A number of tokens of a session; nothing = all.
int64_t checked_n(const char* what, const Generation::Rest& rest, std::optional<int64_t> n) {
  const int64_t n_all = n_tokens(rest);
  if (n.value_or(0) < 0 || n.value_or(0) > n_all)
    throw std::invalid_argument(
        error_text("session", what, cat("0 to ", n_all), cat(*n), "pass a number of tokens held"));
  return n.value_or(n_all);
}

Ids tokens(NativeSession& self) {
  return self.use([](const Generation::Rest& rest) {
    Ids out = rest.session.tokens();
    out.insert(out.end(), rest.pending.begin(), rest.pending.end());
    return out;
  });
}

int64_t n_past(NativeSession& self) {
  return self.use([](const Generation::Rest& rest) { return rest.session.n_past(); });
}

void append(NativeSession& self, const Ids& tokens) {
  self.use([&](Generation::Rest& rest) {
    const size_t n_before = rest.pending.size();
    rest.pending.insert(rest.pending.end(), tokens.begin(), tokens.end());
    try {
      Interrupt interrupt;
      compute_without_gil(interrupt, [&] { add_pending(rest, interrupt.stop_check()); });
    } catch (...) {
      rest.pending.resize(n_before);
      throw;
    }
  });
}

void truncate(NativeSession& self, int64_t n) {
  self.use([n](Generation::Rest& rest) {
    checked_n("truncate", rest, n);
    ReleasedGil release;
    cut(rest, n);
  });
}

SharedSession fork(NativeSession& self, std::optional<int64_t> n) {
  return self.use([n](const Generation::Rest& rest) {
    const int64_t n_to = checked_n("fork", rest, n);
    ReleasedGil release;
    const int64_t n_held = std::min(n_to, rest.session.n_past());
    return std::make_shared<NativeSession>(
        Generation::Rest{rest.session.fork(n_held), {rest.pending.begin(), rest.pending.begin() + (n_to - n_held)}});
  });
}

void save(NativeSession& self, const std::string& path) {
  self.use([&](Generation::Rest& rest) {
    Interrupt interrupt;
    compute_without_gil(interrupt, [&] {
      add_pending(rest, interrupt.stop_check());
      rest.session.save(path);
    });
  });
}

}  // namespace

void bind_session(nb::module_& module) {
  nb::class_<NativeSession>(module, "Session", "A conversation: its tokens and their keys and values.")
      .def_static("open", &open_session, nb::arg("engine"))
      .def_static("load", &load_session, nb::arg("engine"), nb::arg("path"))
      .def("tokens", &tokens)
      .def("n_past", &n_past)
      .def("append", &append, nb::arg("tokens"))
      .def("truncate", &truncate, nb::arg("n"))
      .def("fork", &fork, nb::arg("n").none())
      .def("save", &save, nb::arg("path"));
}

}  // namespace hotset::python
