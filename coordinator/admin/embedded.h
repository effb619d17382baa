#pragma once
#include <memory>
#include <optional>
#include <semaphore>
#include <string>

#include "coordinator/service/volume_service.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/blocking.h"
#include "csvfs/base/task.h"
#include "csvfs/mount.h"
#include "iscsi/open_lun.h"

namespace csv::admin {

/// A volume used without csvd, cluster or FUSE: its coordinator and a mount of it, the same code as
/// everywhere, in this process, connected in memory. Opening it is a takeover like any other: a
/// coordinator elsewhere is fenced. One loop thread of its own; call() from any thread.
class EmbeddedVolume {
 public:
  struct Options {
    iscsi::LunOptions lun;
    NodeId node{63};
    bool although_mounted = false;  ///< Go on where other nodes' mounts are registered: they are
                                    ///< fenced if they do not come back.
  };
  /// Errc::refused where the LUN holds no volume, or mounts of other nodes use it.
  static Expected<std::unique_ptr<EmbeddedVolume>> open(const std::string& lun, Options options);
  /// Like a crash, unless close() came first.
  ~EmbeddedVolume();
  /// Good order: the mount says goodbye, the coordinator writes everything and leaves.
  Expected<void> close();

  /// Runs `start(mount)` on the loop's thread and waits for its result.
  template <typename Start>
  auto call(Start start) {
    return run([this, &start] { return start(*mount_); });
  }
  [[nodiscard]] const std::string& volume() const { return volume_; }

 private:
  EmbeddedVolume(const std::string& url, Options options);
  Expected<void> begin();
  struct Parts;

  /// Runs the task that `start` makes, on the loop's thread.
  template <typename Start>
  auto run(Start start) {
    using T = decltype(start().await_resume());
    std::optional<T> result;
    waiting_.wait([&](std::function<void()> wake) {
      loop_.post([&, wake] { tasks_->spawn(finish<T>(start(), result, wake)); });
    });
    return std::move(*result);
  }
  template <typename T>
  static Task<void> finish(Task<T> task, std::optional<T>& into, std::function<void()> wake) {
    into.emplace(co_await task);
    wake();
  }
  static Task<bool> true_after(Task<void> task) {
    co_await task;
    co_return true;
  }
  void on_loop(Function<void()> work);
  void take_down();
  void wake_once();

  std::string url_, volume_;
  Options options_;
  AsioLoop loop_;
  ThreadBlocking waiting_;
  std::unique_ptr<Parts> parts_;      ///< The loop's thread only.
  std::unique_ptr<TaskScope> tasks_;  ///< The loop's thread only.
  Mount* mount_ = nullptr;
};

}  // namespace csv::admin
