// csvd: see docs/configuration.md. Wiring only.
#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <memory>

#include "coordinator/daemon.h"
#include "csvfs/base/asio.h"
#include "csvfs/base/events.h"
#include "csvfs/base/io_process.h"
#include "csvfs/base/log.h"
#include "csvfs/base/systemd.h"

namespace {

/// This process, begun again: the same one for whoever watches it. All that is open is closed.
int begin_again(char** arguments) {
  ::close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
  ::execv("/proc/self/exe", arguments);
  csv::log::error("restart_failed errno={}", errno);
  return 1;
}

int run(const std::string& config_file, bool debug, char** arguments) {
  using namespace csv;
  log::set_up("csvd", debug ? log::Level::debug : log::Level::info);
  auto config = load_config(config_file);
  if (!config) {
    std::fprintf(stderr, "csvd: %s\n", config.error().message().c_str());
    return 2;
  }
  become_part_of_the_io_path();
  AsioLoop loop;
  Daemon::Places places;
  places.config = config_file;
  std::unique_ptr<Daemon> running;
  bool again = false;
  places.restart = [&] {
    again = true;
    running->close(5s, [&loop] { loop.stop(); });
  };
  places.reboot = [] {
    // Nothing is waited for: what would be written may lie behind what has gone.
    if (::reboot(RB_AUTOBOOT) != 0) log::error("reboot_failed errno={}", errno);
  };
  auto daemon = Daemon::start(loop, *std::move(config), places);
  if (!daemon) {
    std::fprintf(stderr, "csvd: %s\n", daemon.error().message().c_str());
    return 1;
  }
  running = *std::move(daemon);
  // Now that no other csvd can be here.
  if (auto opened = events::open("csvd"); !opened)
    log::warning("events_unavailable why=\"{}\"", opened.error().message());
  events::report(events::Severity::info, "csvd", "", "csvd started");
  asio::signal_set signals{loop.context(), SIGTERM, SIGINT};
  std::function<void(const boost::system::error_code&, int)> on_signal =
      [&](const boost::system::error_code& error, int number) {
        if (error) return;
        log::info("signal number={}", number);
        notify_systemd("STOPPING=1");
        events::report(events::Severity::info, "csvd", "", "csvd is ending",
                       "signal " + std::to_string(number));
        again = false;
        // The next life begins like one after a boot, not as the restart for a loss.
        (void)std::remove(places.restarted.c_str());
        running->close(20s, [&loop] { loop.stop(); });
      };
  signals.async_wait(on_signal);
  notify_systemd("READY=1");
  loop.run();
  if (!again) return 0;
  running.reset();
  return begin_again(arguments);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"csvd takes part in the cluster and coordinates volumes of csvfs"};
  std::string config = csv::kConfigFile;
  bool debug = false;
  app.add_option("--config", config, "The configuration")->capture_default_str();
  app.add_flag("--debug", debug, "Log details, too");
  app.set_version_flag("--version", "csvd " CSV_VERSION, "The version");
  CLI11_PARSE(app, argc, argv);
  ::signal(SIGPIPE, SIG_IGN);
  // Begun again through /proc/self/exe it would be called "exe" by whoever looks for it.
  ::prctl(PR_SET_NAME, "csvd");
  return run(config, debug, argv);
}
