#pragma once
#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace csv {

/// One line of /proc/self/mountinfo.
struct MountEntry {
  int id = 0;
  unsigned device_minor = 0;
  std::string mountpoint, type, source;
};

/// What is mounted in this process's namespace, oldest first: of several at one place the last one
/// is what programs see. Looking touches no file system, so a dead one cannot make it wait.
std::vector<MountEntry> parse_mount_table(std::string_view text);
std::vector<MountEntry> mount_table();

/// The type under which the kernel shows csvfs.
inline constexpr std::string_view kMountType = "fuse.csvfs";

/// What programs see at `place`; nothing where no file system is mounted exactly there.
std::optional<MountEntry> mounted_at(const std::vector<MountEntry>& table, std::string_view place);
/// Every csvfs of this volume.
std::vector<MountEntry> mounts_of(const std::vector<MountEntry>& table, std::string_view volume);

/// An absolute path without symbolic links, "." and "..". Only what is above the last part is
/// looked at: the last one may be a mount point that answers nobody.
std::string without_touching(const std::string& path);

/// A process that keeps a mount busy.
struct MountUser {
  pid_t pid = 0;
  std::string program, how;  ///< "bash", "working directory"
};
/// From /proc: who has files open, works in or runs from the mount. Those of other users only as
/// root. `for_writing`: only open files that may be written.
std::vector<MountUser> users_of(const MountEntry& mount, bool for_writing = false);

}  // namespace csv
