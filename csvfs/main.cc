// csvfs, mount.csvfs and umount.csvfs: one program by three names. Wiring only.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csvfs/base/log.h"
#include "csvfs/base/systemd.h"
#include "csvfs/connection_end.h"
#include "csvfs/daemon.h"
#include "csvfs/mount_command.h"
#include "csvfs/mount_point.h"

namespace {

using namespace csv;

constexpr const char* kUsage =
    "csvfs VOLUME [MOUNTPOINT] [OPTIONS]\n"
    "mount.csvfs VOLUME MOUNTPOINT [-fnrsvw] [-o OPTIONS]     as mount(8) calls it\n"
    "\n"
    "Mounts a volume of this node's configuration, at /clusterstorage/VOLUME unless another place "
    "is\n"
    "given. Returns when programs can use it, and fails with the reason if they cannot.\n"
    "\n"
    "  -o OPTIONS       as mount(8) has them, separated by commas: ro, rw, noexec, nosuid, nodev,\n"
    "                   noatime, remount; timeout=SECONDS, config=FILE, log=FILE\n"
    "  -r, --read-only  the same as -o ro\n"
    "      --timeout S  how long to wait for a coordinator and the LUN, 60 s by default\n"
    "      --config F   the node's configuration, /etc/csvfs/csvd.toml by default\n"
    "      --log F      where the background process logs, /run/csvfs/mount-VOLUME.log by default\n"
    "  -f, --foreground stay, log to stderr, end when unmounted (mount.csvfs: -f is --fake)\n"
    "      --fake       look at everything, mount nothing\n"
    "  -v, --verbose    say what is done\n"
    "  -h, --help       this\n"
    "  -V, --version    the version\n";

constexpr const char* kUmountUsage =
    "umount.csvfs MOUNTPOINT [-flnrv]     as umount(8) calls it\n"
    "\n"
    "Unmounts a volume and returns when its csvfs has said goodbye to the cluster. If it is busy, "
    "it\n"
    "is said who uses it.\n"
    "\n"
    "  -l, --lazy       detach it now; csvfs ends when nobody uses it any more\n"
    "  -f, --force      give up what programs wait for\n"
    "  -r, --read-only  if it is busy, make it read-only\n"
    "      --if-mounted succeed also where nothing is mounted\n"
    "      --fake       look, unmount nothing\n"
    "  -v, --verbose    say what is done\n";

std::string g_name = "csvfs";  // as it was called

int exit_with(MountExit code) { return static_cast<int>(code); }
void say(const std::string& text) {
  std::fprintf(stderr, "%s: %s\n", g_name.c_str(), text.c_str());
}

int wrong(const Error& why) {
  say(why.message() + " (" + g_name + " --help)");
  return exit_with(MountExit::usage);
}
int failed(const Error& why) {
  say(why.message());
  return exit_with(MountExit::failed);
}

/// The child's word to the parent that waits for it: "+" for success, else the reason.
class Herald {
 public:
  explicit Herald(int to) : to_{to} {}
  /// Whether somebody was there to hear it.
  bool say(const std::string& word) {
    if (to_ < 0) return true;
    std::string_view rest{word};
    while (!rest.empty()) {
      auto sent = ::write(to_, rest.data(), rest.size());
      if (sent <= 0) break;
      rest.remove_prefix(static_cast<std::size_t>(sent));
    }
    ::close(std::exchange(to_, -1));
    return rest.empty();
  }

 private:
  int to_;
};

int serve(const MountCommand& asked, MountPlace place, Herald herald) {
  DaemonOptions options;
  options.volume = asked.volume;
  options.mountpoint = place.mountpoint;
  options.config_file = asked.options.config_file;
  options.mount_flags = asked.options.flags;
  options.ready_within = asked.options.ready_within;
  ::prctl(PR_SET_NAME, "csvfs");  // whatever it was called
  MountLock::Holder me{.pid = ::getpid(), .mountpoint = place.mountpoint, .end = {}};
  place.lock.write(me);
  bool usable = false;
  auto result = run_daemon(options, [&] {
    usable = true;
    if (asked.foreground) tell_umount(asked.volume, place.mountpoint, false);
    notify_systemd("READY=1\nSTATUS=mounted at " + place.mountpoint);
    // Nobody waits any more: whoever wanted the mount has given up.
    return herald.say("+");
  });
  me.end = result ? MountLock::kGoodEnd : result.error().message();
  place.lock.write(me);
  if (result) return 0;
  if (usable) return failed(result.error());
  (void)herald.say(result.error().message());
  return asked.foreground ? failed(result.error()) : exit_with(MountExit::failed);
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

volatile std::sig_atomic_t g_interrupted = 0;

/// Forks before any thread is made; the parent stays until the child says whether it can be used.
int serve_in_background(const MountCommand& asked, MountPlace place) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    say(errno_error(errno, "making a pipe").message());
    return exit_with(MountExit::system);
  }
  auto child = ::fork();
  if (child < 0) {
    say(errno_error(errno, "starting the background process").message());
    return exit_with(MountExit::system);
  }
  if (child == 0) {
    ::close(ends[0]);
    leave_the_terminal(asked.options.log_file);
    log::set_up("csvfs", log::Level::info);  // only now: it looks where that leads
    ::_exit(serve(asked, std::move(place), Herald{ends[1]}));
  }
  ::close(ends[1]);
  struct sigaction interrupted {};
  interrupted.sa_handler = [](int) { g_interrupted = 1; };
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &interrupted, nullptr);
  std::string word;
  char bytes[512];
  bool told = false;
  for (;;) {
    auto got = ::read(ends[0], bytes, sizeof bytes);
    if (g_interrupted != 0 && !std::exchange(told, true)) ::kill(child, SIGTERM);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    word.append(bytes, static_cast<std::size_t>(got));
  }
  if (word == "+") {
    tell_umount(asked.volume, place.mountpoint, true);
    if (asked.verbose) say(asked.volume + " is mounted at " + place.mountpoint);
    return 0;
  }
  if (told) {
    say("given up: " + word);
    return exit_with(MountExit::interrupted);
  }
  if (word.empty()) word = "the background process ended; see " + asked.options.log_file;
  return failed(Error{Errc::refused, word});
}

int mount(const std::vector<std::string>& words, bool as_helper) {
  auto asked = parse_mount_command(words, as_helper);
  if (!asked) return wrong(asked.error());
  if (asked->help) {
    std::printf("%s", kUsage);
    return 0;
  }
  if (asked->version) {
    std::printf("csvfs %s\n", CSV_VERSION);
    return 0;
  }
  if (::geteuid() != 0) return wrong(Error{Errc::refused, "only root can mount"});
  if (asked->options.remount) {
    auto done = remount(*asked);
    return done ? 0 : failed(done.error());
  }
  auto known = check_volume_is_configured(asked->options.config_file, asked->volume);
  if (!known) return failed(known.error());
  auto place = take_mount_place(*asked, say);
  if (!place) return failed(place.error());
  if (asked->fake) return 0;
  ::signal(SIGPIPE, SIG_IGN);
  if (!asked->foreground) return serve_in_background(*asked, *std::move(place));
  log::set_up("csvfs", log::Level::info);
  return serve(*asked, *std::move(place), Herald{-1});
}

int umount(const std::vector<std::string>& words) {
  auto asked = parse_umount_command(words);
  if (!asked) return wrong(asked.error());
  if (asked->help) {
    std::printf("%s", kUmountUsage);
    return 0;
  }
  if (asked->version) {
    std::printf("csvfs %s\n", CSV_VERSION);
    return 0;
  }
  if (::geteuid() != 0) return wrong(Error{Errc::refused, "only root can unmount"});
  auto done = unmount(*asked, say);
  if (!done) return failed(done.error());
  if (asked->verbose) say(asked->mountpoint + " is unmounted");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view called = argc > 0 ? argv[0] : "csvfs";
  g_name = called.substr(called.rfind('/') + 1);
  std::vector<std::string> words{argv + (argc > 0 ? 1 : 0), argv + argc};
  if (g_name == kGuardian) return guard_connection();
  if (g_name.starts_with("umount.")) return umount(words);
  return mount(words, g_name.starts_with("mount."));
}
