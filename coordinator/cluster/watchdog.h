#pragma once
#include <functional>
#include <memory>
#include <string>

#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/status_board.h"

namespace csv::cluster {

/// What resets the machine unless it is petted in time. From its making on it counts. Destroyed
/// without disarm() it counts on, as by the end of a process that crashed.
class WatchdogDevice {
 public:
  virtual ~WatchdogDevice() = default;
  /// What it will count to from now on, which may be more than was asked for.
  virtual Expected<Duration> set_timeout(Duration timeout) = 0;
  virtual Expected<void> pet() = 0;
  /// It counts no more, unless the kernel was told never to let go of it.
  virtual Expected<void> disarm() = 0;
};

/// The kernel's, by its path; <linux/watchdog.h>. Errors say what to do: it is not there, another
/// program has it, or it is none (then nothing counts).
Expected<std::unique_ptr<WatchdogDevice>> open_watchdog(const std::string& path);
/// The same over a descriptor, which it owns, that somebody has opened.
std::unique_ptr<WatchdogDevice> watchdog_on(int descriptor);

/// What a mount has said of itself since the node's lease ran out at `open_until`: nothing of it
/// goes to the LUN. No process is one that has ended.
bool sends_nothing(const BoardMount& mount, TimePoint open_until);

/// Pets a watchdog as long as this node cannot do harm: its lease runs, or nothing of it can send
/// anything. It is petted from the loop, so a csvd that hangs, or a machine that does, is reset;
/// and so is one whose lease has run out while a mount may still believe in it. Fencing at the LUN
/// needs none of that; a target that cannot end a dead node's commands does. One loop.
class Watchdog {
 public:
  struct Surroundings {
    Loop* loop = nullptr;
    std::function<bool()> lease_runs;
    /// Who may still send something without a lease, and why that is believed; empty: nobody.
    std::function<std::string()> not_closed;
  };
  /// Sets the timeout, and pets. Errc::refused if the device counts to less than kShortestWatchdog;
  /// it is disarmed then.
  static Expected<std::unique_ptr<Watchdog>> start(std::unique_ptr<WatchdogDevice> device,
                                                   Duration timeout, Surroundings with);
  ~Watchdog();  ///< The device counts on.
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// An end in good order: the device is not petted any more, and disarmed if it would be petted
  /// now; else it counts on.
  void end();
  /// The machine is being rebooted: nothing pets any more, so a reboot that hangs ends, too.
  void give_up(std::string why);

  struct State {
    Duration timeout{};
    TimePoint petted{};
    std::string withheld;  ///< Why it is not petted; empty: it is.
  };
  [[nodiscard]] const State& state() const { return state_; }

 private:
  Watchdog(std::unique_ptr<WatchdogDevice> device, Duration timeout, Surroundings with);
  void tick();
  void disarm();
  [[nodiscard]] std::string why_not() const;  ///< It must not be petted; empty: it may.
  Expected<void> pet();

  std::unique_ptr<WatchdogDevice> device_;
  Surroundings with_;
  State state_;
  bool given_up_ = false;
  Loop::TimerId timer_{};
};

}  // namespace csv::cluster
