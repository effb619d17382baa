#pragma once
#include <string>
#include <string_view>

namespace csv {

/// What mount(8)'s options mean to mount(2), and to us.
struct MountFlags {
  unsigned long flags = 0;       ///< MS_…
  bool shared_mappings = false;  ///< [no]shared_mmap: mmap(2) with MAP_SHARED.
};
/// Takes `option` into account, the later of two that contradict; false if it is none of these.
bool apply_mount_option(MountFlags& to, std::string_view option);

/// Whether the mount at `mountpoint`, as `mountinfo` (a /proc/PID/mountinfo) shows it, keeps access
/// times. A remount may have changed that.
bool keeps_access_times(const std::string& mountinfo, const std::string& mountpoint);

}  // namespace csv
