#pragma once
#include <functional>
#include <string>
#include <vector>

#include "csvfs/base/config.h"
#include "csvfs/base/error.h"

namespace csv {

/// What `csvfs VOLUME MOUNTPOINT` was asked to do.
struct DaemonOptions {
  std::string volume;
  std::string mountpoint;
  std::string config_file = kConfigFile;
  std::string board = kBoardName;
  std::vector<std::string> mount_options;  ///< As mount(8) has them, one each.
  bool lock_memory = true;
};

/// Mounts the volume and serves it until it is unmounted or a signal asks for the end, then says
/// goodbye in good order. `usable` is called once programs may use the mount point; without that
/// the error says why it cannot be mounted. One per process; the calling thread becomes the
/// mount's.
Expected<void> run_daemon(const DaemonOptions& options, std::function<void()> usable);

}  // namespace csv
