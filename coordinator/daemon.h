#pragma once
#include <functional>
#include <memory>
#include <string>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/config.h"
#include "csvfs/base/function.h"

namespace csv {

/// csvd: this node's part in the cluster, put together. In the order in which they are built: the
/// admin socket (which also keeps a second csvd out), the status board, the membership, the
/// coordination of each configured volume, and last the port on which peers and mounts are heard.
///
/// It lives on `loop`, whose thread it takes nothing of by itself: whoever made it runs the loop.
class Daemon {
 public:
  struct Places {
    std::string board = kBoardName;
    std::string socket = kAdminSocket;
    std::string config = kConfigFile;  ///< Read again by the command reload.
    /// There while this life of csvd is the restart for a loss of the quorum (QuorumLoss).
    std::string restarted = "/run/csvfs/restarted";
    /// Ends this life in good order and begins another one, for a loss of the quorum; from the
    /// loop. None: nothing of it is done.
    std::function<void()> restart;
    /// Reboots the machine at once. Only where the configuration says so.
    std::function<void()> reboot;
  };
  static Expected<std::unique_ptr<Daemon>> start(AsioLoop& loop, Config config, Places places);
  virtual ~Daemon() = default;
  /// Good order: gives up every volume, then ends the threads of their catalogs. `done` once, from
  /// the loop; the daemon can then be destroyed. At most `patience`, then it ends all the same: the
  /// LUN does not care.
  virtual void close(Duration patience, Function<void()> done) = 0;
};

}  // namespace csv
