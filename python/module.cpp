// The Python module `hotset._core`: converts arguments, errors and results; everything else is in the library.
#include <nanobind/nanobind.h>

#include <new>

#include "python/bindings.h"

namespace hotset::python {

namespace {

constexpr auto kSignalInterval = std::chrono::milliseconds(50);

// Looked up once, at import; see ReleasedGil for why.
struct PythonNames {
  unsigned long main_thread = 0;
  PyObject *error = nullptr, *model_format = nullptr, *unsupported_model = nullptr, *context_length = nullptr,
           *out_of_memory = nullptr, *device = nullptr;
} names;

// Returns a class of hotset.errors; the reference is kept until the process ends.
PyObject* error_class(const char* name) {
  return nb::object(nb::module_::import_("hotset.errors").attr(name)).release().ptr();
}

void look_up_names() {
  names.main_thread = nb::cast<unsigned long>(nb::module_::import_("threading").attr("main_thread")().attr("ident"));
  names.error = error_class("Error");
  names.model_format = error_class("ModelFormatError");
  names.unsupported_model = error_class("UnsupportedModelError");
  names.context_length = error_class("ContextLengthError");
  names.out_of_memory = error_class("OutOfMemoryError");
  names.device = error_class("DeviceError");
}

// Native errors arrive in Python as the classes of hotset.errors, so that there is one set of classes.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const ModelFormatError& error) {
    PyErr_SetString(names.model_format, error.what());
  } catch (const UnsupportedModelError& error) {
    PyErr_SetString(names.unsupported_model, error.what());
  } catch (const ContextLengthError& error) {
    PyErr_SetString(names.context_length, error.what());
  } catch (const OutOfMemoryError& error) {
    PyErr_SetString(names.out_of_memory, error.what());
  } catch (const DeviceError& error) {
    PyErr_SetString(names.device, error.what());
  } catch (const Error& error) {
    PyErr_SetString(names.error, error.what());
  } catch (const std::bad_alloc&) {
    const std::string text = error_text("memory", "an allocation failed", "free memory", "none",
                                        "close other programs or choose a smaller model or context");
    PyErr_SetString(names.out_of_memory, text.c_str());
  }
}

}  // namespace

Interrupt::Interrupt()
    : main_thread_(PyThread_get_thread_ident() == names.main_thread), last_look_(std::chrono::steady_clock::now()) {}

StopCheck Interrupt::stop_check() {
  if (!main_thread_) return exiting;
  return [this] { return pending_signal(); };
}

bool Interrupt::pending_signal() {
  if (error_) return true;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_look_ < kSignalInterval) return false;
  last_look_ = now;
  nb::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() == 0) return false;
  error_.emplace();
  return true;
}

void Interrupt::store(nb::python_error error) { error_.emplace(std::move(error)); }

void Interrupt::rethrow() {
  if (error_) throw nb::python_error(*error_);
}

NB_MODULE(_core, module) {
#ifdef NDEBUG
  nb::set_leak_warnings(false);  // a daemon thread that still generates at exit is no reason to print
#endif
  module.doc() = "Native half of hotset. Use the classes of the package `hotset`; names in here may change.";
  look_up_names();
  nb::register_exception_translator(translate);
  register_exit_handler();
  module.def("version", &version, "Version of the library.");
  module.def("build_commit", &build_commit, "Commit the library was built from, or \"\" when unknown.");
  bind_engine(module);
  bind_session(module);
  bind_generation(module);
  bind_header(module);
  bind_plan(module);
  bind_compare(module);
  bind_tensors(module);
  bind_profile(module);
  bind_tokenizer(module);
}

}  // namespace hotset::python
