#pragma once
#include <string>
#include <vector>

#include "csvfs/base/error.h"

namespace csv {

/// What mount(8)'s options mean to mount(2), and to us.
struct MountFlags {
  unsigned long flags = 0;       ///< MS_…
  bool shared_mappings = false;  ///< shared_mmap: allowed, with what docs/mount.md says of them.
};
/// Errc::refused, with the option, for one that is not known.
Expected<MountFlags> parse_mount_options(const std::vector<std::string>& options);

/// Whether the mount at `mountpoint`, as `mountinfo` (a /proc/PID/mountinfo) shows it, keeps access
/// times. A remount may have changed that.
bool keeps_access_times(const std::string& mountinfo, const std::string& mountpoint);

}  // namespace csv
