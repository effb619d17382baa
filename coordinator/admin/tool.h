#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/service/sole_use.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/blocking.h"
#include "csvfs/base/config.h"
#include "csvfs/base/random.h"
#include "csvfs/base/task.h"
#include "csvfs/base/thread_worker.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/open_lun.h"

namespace csv::admin {

/// What a command of csvctl ends with; docs/csvctl.md.
enum class ExitCode : int {
  done = 0,
  failed = 1,
  usage = 2,          ///< Wrong arguments or configuration.
  problems = 3,       ///< The check went through and found something.
  not_confirmed = 4,  ///< It would destroy or disturb something, and nobody said yes.
  no_csvd = 5,        ///< csvd of this node does not answer.
};

/// What a command talks to: people or scripts. Texts go out at once; a reader that went away is no
/// error (`csvctl … | head`).
class Terminal {
 public:
  /// By what the three standard streams are.
  static Terminal standard(const Clock& clock);
  Terminal(const Clock& clock, bool ask, bool show_progress)
      : clock_{&clock}, may_ask_{ask}, shows_progress_{show_progress} {}

  /// To stdout, as it is. Whether somebody reads it.
  bool out(const std::string& text) const;
  void note(const std::string& text) const;  ///< A line to stderr.
  /// Whether somebody there answers yes. No, where nobody is.
  [[nodiscard]] bool confirm(const std::string& question) const;
  /// A line of the standard input, after the question where somebody is there to read it; empty:
  /// there is none.
  [[nodiscard]] std::string read_line(const std::string& question) const;
  [[nodiscard]] bool may_ask() const { return may_ask_; }
  [[nodiscard]] const Clock& clock() const { return *clock_; }
  /// A line that is rewritten in place, at most some times a second and only where people look;
  /// nothing in the first two seconds. Empty: the line is removed.
  void progress(const std::string& text);
  /// The same: "DOING: 12 %", and "DOING: 12 s".
  void progress(const std::string& doing, std::uint64_t done, std::uint64_t of);
  void progress(const std::string& doing, Duration waited);

 private:
  const Clock* clock_;
  bool may_ask_, shows_progress_;
  TimePoint started_{}, shown_{};
  bool on_screen_ = false;
};

/// A LUN for a command: opened at once, used synchronously, with a loop thread of its own. Nexuses
/// of their own too, so that nothing of csvd or a mount on this node is disturbed.
class ToolLun {
 public:
  static Expected<std::unique_ptr<ToolLun>> open(const std::string& url, iscsi::LunOptions options);
  ~ToolLun();
  [[nodiscard]] iscsi::BlockingLun& blocking() { return *blocking_; }
  [[nodiscard]] iscsi::Lun& lun() { return *lun_; }
  [[nodiscard]] Loop& loop() { return loop_; }
  /// Runs the task that `start` makes on the LUN's loop, and waits for its result.
  template <typename Start>
  auto run(Start start) {
    using T = decltype(start().await_resume());
    std::optional<T> result;
    std::optional<TaskScope> tasks;
    on_loop([&](const std::function<void()>& wake) {
      tasks.emplace();
      tasks->spawn(finish<T>(start(), result, wake));
    });
    on_loop([&](const std::function<void()>& wake) {
      tasks.reset();
      wake();
    });
    return std::move(*result);
  }

 private:
  ToolLun() = default;
  template <typename T>
  static Task<void> finish(Task<T> task, std::optional<T>& into, std::function<void()> wake) {
    into.emplace(co_await task);
    wake();
  }
  /// Until `work`, which is run on the loop, has called what it is given.
  template <typename Work>
  void on_loop(Work work) {
    wait_.wait([&](std::function<void()> wake) { loop_.post([&work, wake] { work(wake); }); });
  }
  AsioLoop loop_;
  ThreadBlocking wait_;
  std::unique_ptr<iscsi::Lun> lun_;
  std::unique_ptr<iscsi::BlockingLun> blocking_;
};

/// This tool's key on a LUN that a reservation keeps outsiders from, for as long as it lives; none
/// where there is no reservation. A coordinator that serves the volume takes it away within a
/// second, since it has no row: then reading fails with Errc::fenced.
class TemporaryKey {
 public:
  static Expected<std::unique_ptr<TemporaryKey>> enter(iscsi::BlockingLun& lun, Random& random);
  ~TemporaryKey() { (void)leave(); }
  /// Gives it up now, and says whether the target agreed.
  Expected<void> leave();
  [[nodiscard]] Key key() const { return key_; }  ///< Key{}: none was needed.

 private:
  TemporaryKey(iscsi::BlockingLun& lun, Key key) : lun_{&lun}, key_{key} {}
  iscsi::BlockingLun* lun_;
  Key key_;
};

/// The LUN for a command that changes a volume which nobody serves.
class SoleUse {
 public:
  /// Registers a key and looks who else is there; nobody is disturbed. `cluster`: for the key,
  /// where neither superblocks nor keys say it.
  static Expected<std::unique_ptr<SoleUse>> enter(ToolLun& lun, std::uint16_t cluster,
                                                  Random& random);
  /// Gives the key up, unless take() was tried: then it keeps out whom it threw out, until the next
  /// coordinator removes it.
  ~SoleUse();
  SoleUse(const SoleUse&) = delete;
  SoleUse& operator=(const SoleUse&) = delete;
  [[nodiscard]] const service::Users& users() const { return users_; }
  /// From its success on nobody else reads or writes (service::take_for_one).
  Expected<void> take();
  /// Whose the volume turned out to be. A key of another cluster would be in its coordinator's way:
  /// it is given up at the end.
  void belongs_to(std::uint16_t cluster) { cluster_ = cluster; }

 private:
  SoleUse(ToolLun& lun, Key key) : lun_{&lun}, key_{key} {}
  ToolLun* lun_;
  Key key_;
  service::Users users_;
  std::optional<std::uint16_t> cluster_;
  bool taken_ = false;
};

/// The initiator's name of this node: the configuration's where there is one, else from the host's.
std::string tool_initiator(const std::string& config_file);

}  // namespace csv::admin
