#pragma once
#include <functional>
#include <string>
#include <vector>

#include "csvfs/base/config.h"
#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"
#include "csvfs/mount_options.h"

namespace csv {

/// What `csvfs VOLUME MOUNTPOINT` was asked to do.
struct DaemonOptions {
  std::string volume;
  std::string mountpoint;
  std::string config_file = kConfigFile;
  std::string board = kBoardName;
  MountFlags mount_flags;
  bool lock_memory = true;
  Duration ready_within = 60s;  ///< csvd may be starting, or taking the volume over.
};

/// Whether the configuration has this volume; the error names those it has.
Expected<void> check_volume_is_configured(const std::string& config_file,
                                          const std::string& volume);

/// Mounts the volume and serves it until it is unmounted or a signal asks for the end, then says
/// goodbye in good order. `usable` is called once programs may use the mount point, and says
/// whether anybody still wants it; without that call the error says why it cannot be mounted. After
/// it an error says in what the good order failed. One per process; the calling thread becomes the
/// mount's.
Expected<void> run_daemon(const DaemonOptions& options, std::function<bool()> usable);

}  // namespace csv
