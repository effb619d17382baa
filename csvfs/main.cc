#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/log.h"
#include "csvfs/daemon.h"

namespace {

using csv::DaemonOptions;
using csv::Errc;
using csv::Error;
using csv::Expected;

constexpr const char* kUsage =
    "csvfs VOLUME MOUNTPOINT [-o OPTIONS] [--config FILE] [--foreground] [--log FILE]\n"
    "\n"
    "Mounts a volume of this node's configuration. Returns when it can be used, and fails with "
    "the\n"
    "reason if it cannot; with --foreground it stays, and ends when it is unmounted.\n"
    "\n"
    "  -o OPTIONS    as mount(8) has them, separated by commas: ro, noexec, nosuid, nodev, "
    "noatime\n"
    "  --config FILE the node's configuration, /etc/csvfs/csvd.toml by default\n"
    "  --log FILE    where the background process logs, /run/csvfs/mount-VOLUME.log by default\n";

struct Invocation {
  DaemonOptions daemon;
  bool foreground = false, help = false;
  std::string log_file;
};

std::vector<std::string> split(std::string_view text, char at) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    auto end = text.find(at);
    if (end != 0) parts.emplace_back(text.substr(0, end));
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
  }
  return parts;
}

Expected<Invocation> parse(const std::vector<std::string>& words) {
  Invocation made;
  std::vector<std::string> places;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto& word = words[i];
    auto value = [&]() -> Expected<std::string> {
      if (i + 1 == words.size()) return Error{Errc::refused, word + " wants a value"};
      return words[++i];
    };
    if (word == "-o") {
      for (auto& option : split(CSV_TRY(value()), ','))
        made.daemon.mount_options.push_back(std::move(option));
    } else if (word == "--config") {
      made.daemon.config_file = CSV_TRY(value());
    } else if (word == "--log") {
      made.log_file = CSV_TRY(value());
    } else if (word == "--foreground" || word == "-f") {
      made.foreground = true;
    } else if (word == "--help" || word == "-h") {
      made.help = true;
    } else if (word.starts_with("-")) {
      return Error{Errc::refused, "unknown option " + word};
    } else {
      places.push_back(word);
    }
  }
  if (made.help) return made;
  if (places.size() != 2) return Error{Errc::refused, "a volume and a mount point are needed"};
  made.daemon.volume = places[0];
  char* real = ::realpath(places[1].c_str(), nullptr);
  if (!real) return csv::errno_error(errno, "mount point " + places[1]);
  made.daemon.mountpoint = real;
  std::free(real);
  if (made.log_file.empty()) made.log_file = "/run/csvfs/mount-" + made.daemon.volume + ".log";
  return made;
}

int fail(const Error& why) {
  std::fprintf(stderr, "csvfs: %s\n", why.message().c_str());
  return 1;
}

/// The child's word to the parent that waits for it: nothing for success, else the reason.
class Herald {
 public:
  explicit Herald(int to) : to_{to} {}
  void say(const std::string& reason) {
    if (to_ < 0) return;
    std::string_view rest{reason};
    while (!rest.empty()) {
      auto sent = ::write(to_, rest.data(), rest.size());
      if (sent <= 0) break;
      rest.remove_prefix(static_cast<std::size_t>(sent));
    }
    ::close(std::exchange(to_, -1));
  }

 private:
  int to_;
};

int serve(const Invocation& asked, Herald herald) {
  bool usable = false;
  auto result = csv::run_daemon(asked.daemon, [&] {
    usable = true;
    herald.say("+");
  });
  if (result) return 0;
  if (usable) return fail(result.error());
  herald.say(result.error().message());
  return asked.foreground ? fail(result.error()) : 1;
}

void leave_the_terminal(const std::string& log_file) {
  ::setsid();
  if (::chdir("/") != 0) return;
  int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  int log = ::open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
  if (null >= 0) {
    ::dup2(null, STDIN_FILENO);
    ::dup2(null, STDOUT_FILENO);
  }
  if (log >= 0 || null >= 0) ::dup2(log >= 0 ? log : null, STDERR_FILENO);
  if (null > STDERR_FILENO) ::close(null);
  if (log > STDERR_FILENO) ::close(log);
}

/// Forks before any thread is made; the parent stays until the child says whether it can be used.
int serve_in_background(const Invocation& asked) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail(csv::errno_error(errno, "making a pipe"));
  auto child = ::fork();
  if (child < 0) return fail(csv::errno_error(errno, "starting the background process"));
  if (child == 0) {
    ::close(ends[0]);
    leave_the_terminal(asked.log_file);
    ::_exit(serve(asked, Herald{ends[1]}));
  }
  ::close(ends[1]);
  std::string word;
  char bytes[512];
  for (;;) {
    auto got = ::read(ends[0], bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    word.append(bytes, static_cast<std::size_t>(got));
  }
  if (word == "+") return 0;
  if (word.empty()) word = "the background process ended; see " + asked.log_file;
  return fail(Error{Errc::refused, word});
}

int run(const std::vector<std::string>& words) {
  auto asked = parse(words);
  if (!asked) {
    std::fprintf(stderr, "%s", kUsage);
    return fail(asked.error());
  }
  if (asked->help) {
    std::printf("%s", kUsage);
    return 0;
  }
  ::signal(SIGPIPE, SIG_IGN);
  csv::log::set_up("csvfs", csv::log::Level::info);
  return asked->foreground ? serve(*asked, Herald{-1}) : serve_in_background(*asked);
}

}  // namespace

int main(int argc, char** argv) { return run({argv + 1, argv + argc}); }
