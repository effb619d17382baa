#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "coordinator/cluster/corosync_conf.h"
#include "csvfs/base/function.h"

namespace csv::cluster {

/// A corosync.conf of ours (render()) with other heartbeats, everything else as it is.
/// Errc::refused where it is none of ours, or lacks what is to be changed.
Expected<std::string> with_heartbeat(std::string_view conf, const Heartbeat& heartbeat);

/// Gives this node's Corosync other heartbeats while it runs (libcmap: token, and with it the
/// consensus, and how often a token is sent again), and writes them into its file, so that it has
/// them after a restart. How soon a dead link is left follows with the file only. Loop's thread.
///
/// A thread of its own does it, since a call waits for as long as Corosync hangs: it is left to
/// itself when this is destroyed, and touches nothing of ours any more.
class CorosyncTuning {
 public:
  explicit CorosyncTuning(Loop& loop, std::string conf = "/etc/corosync/corosync.conf");
  ~CorosyncTuning();

  /// `done` once, from the loop. An error: Corosync has not taken them, or the file could not be
  /// written; it may be tried again. One at a time.
  void apply(const Heartbeat& heartbeat, Function<void(Expected<void>)> done);
  [[nodiscard]] bool busy() const { return busy_; }

 private:
  struct Shared;
  std::string conf_;
  bool busy_ = false;
  std::shared_ptr<Shared> shared_;
};

}  // namespace csv::cluster
