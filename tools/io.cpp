#include "tools/io.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace hotset::cli {
namespace {

constexpr size_t kMaxInputBytes = size_t{1} << 30;

// A signal handler can reach nothing but globals. Besides the flag it writes a byte into a pipe: whoever waits for
// input or output polls that too, so that a signal between a check and the wait, or on another thread, ends the wait.
std::atomic<bool> interrupt_seen{false};
static_assert(std::atomic<bool>::is_always_lock_free, "the signal handler needs a lock-free flag");
int wake_pipe[2] = {-1, -1};

void on_interrupt(int) {
  const int saved_errno = errno;
  interrupt_seen.store(true, std::memory_order_relaxed);
  [[maybe_unused]] const ssize_t n = write(wake_pipe[1], "", 1);
  errno = saved_errno;
}

// Closes a descriptor when it goes out of scope.
struct FileDescriptor {
  int fd;
  ~FileDescriptor() { close(fd); }
};

// Waits until a read or write of `fd` does not block. Throws Interrupted when Ctrl-C comes first.
void wait_ready(int fd, short events) {
  pollfd waiters[2] = {{fd, events, 0}, {wake_pipe[0], POLLIN, 0}};
  while (poll(waiters, 2, -1) < 0 && errno == EINTR) {
  }
  if (waiters[0].revents == 0 && interrupted()) throw Interrupted();
}

// Returns for an errno after which to try again; throws for every other one of a read or write on `what`.
void check_errno(const std::string& what) {
  if (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK) return;
  throw Error(error_text(what, "cannot transfer bytes", "a working file", std::strerror(errno), "check disk and path"));
}

std::string read_all(int fd, const std::string& what) {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    wait_ready(fd, POLLIN);
    if (interrupted()) throw Interrupted();
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n < 0) {
      check_errno(what);
      continue;
    }
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > kMaxInputBytes) {
      throw Error(error_text(what, "input is too long", "at most 1 GiB", "more", "split the text"));
    }
  }
}

}  // namespace

void prepare_process() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    // Read-only, so that writing to a closed stdout stays an error. open() takes the lowest free number: fd.
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", O_RDONLY);
  }
  if (pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK) != 0) wake_pipe[0] = wake_pipe[1] = -1;  // poll skips -1
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second Ctrl-C kills
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return interrupt_seen.load(std::memory_order_relaxed); }

StopCheck interrupt_check() { return [] { return interrupted(); }; }

bool stdout_is_terminal() { return isatty(STDOUT_FILENO) == 1; }
bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

void write_stdout(std::string_view bytes) {
  while (!bytes.empty()) {
    wait_ready(STDOUT_FILENO, POLLOUT);
    const ssize_t n = write(STDOUT_FILENO, bytes.data(), std::min<size_t>(bytes.size(), PIPE_BUF));
    if (n >= 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EPIPE) {
      throw BrokenPipe();
    } else {
      check_errno("stdout");
    }
  }
}

void write_stderr(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(STDERR_FILENO, text.data(), text.size());
    if (n < 0 && errno != EINTR) return;
    if (n > 0) text.remove_prefix(static_cast<size_t>(n));
  }
}

void write_note(const std::string& line) { write_stderr("hotset: " + printable(line) + "\n"); }

std::string read_stdin() { return read_all(STDIN_FILENO, "stdin"); }

std::string read_file(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    throw Error(error_text(path, "cannot open file", "a readable file", std::strerror(errno), "check the path"));
  }
  const FileDescriptor file{fd};
  struct stat status {};
  if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
    throw Error(error_text(path, "cannot read file", "a file", "a directory", "name a file in it"));
  }
  return read_all(fd, path);
}

size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return 0;
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < n) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xf0 && byte(1) < 0x90);
  const bool not_a_character = (lead == 0xed && byte(1) > 0x9f) || (lead == 0xf4 && byte(1) > 0x8f);
  return overlong || not_a_character ? 0 : n;
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const unsigned char c = static_cast<unsigned char>(text[0]);
    size_t n = utf8_length(text);
    const bool c1_control = n == 2 && c == 0xc2 && static_cast<unsigned char>(text[1]) < 0xa0;
    if (n == 0 || c < 0x20 || c == 0x7f || c1_control) {
      out += text_of("\\x%02x", c);
      n = 1;
    } else {
      out.append(text.substr(0, n));
    }
    text.remove_prefix(n);
  }
  return out;
}

std::string text_of(const char* format, ...) {
  va_list list;
  va_start(list, format);
  char buffer[512];
  const int n = vsnprintf(buffer, sizeof buffer, format, list);
  va_end(list);
  HS_CHECK(n >= 0 && static_cast<size_t>(n) < sizeof buffer, "text_of");
  return std::string(buffer, static_cast<size_t>(n));
}

std::string bytes_text(uint64_t n_bytes) {
  const double mib = static_cast<double>(n_bytes) / (1 << 20);
  return mib < 1024 ? text_of("%.2f MiB", mib) : text_of("%.2f GiB", mib / 1024);
}

}  // namespace hotset::cli
