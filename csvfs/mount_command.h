#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/config.h"
#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"
#include "csvfs/mount_options.h"

namespace csv {

/// What a file system's helper ends with, as mount(8) has it.
enum class MountExit : int {
  done = 0,
  usage = 1,        ///< The words on the command line are wrong, or the caller may not.
  system = 2,       ///< The machine failed us: no memory, no process, no pipe.
  interrupted = 8,  ///< The user.
  failed = 32,      ///< It was not mounted, or not unmounted; the reason is on stderr.
};

/// What `-o` says, sorted by who acts on it.
struct MountOptions {
  MountFlags flags;  ///< Of a remount only the kernel's count.
  bool remount = false;
  std::string config_file = kConfigFile;  ///< config=FILE
  std::string log_file;                   ///< log=FILE; empty: /run/csvfs/mount-VOLUME.log
  Duration ready_within = 60s;            ///< timeout=SECONDS
};

/// Takes the options of one `-o`. Those of mount(8) and fstab themselves (nofail, _netdev, x-…) are
/// passed over. Errc::refused names an option that csvfs does not have, unless `sloppy`.
Expected<void> add_mount_options(MountOptions& to, std::string_view words, bool sloppy = false);

/// `csvfs VOLUME [MOUNTPOINT] …`, and the same as mount(8) calls /sbin/mount.csvfs.
struct MountCommand {
  std::string volume;
  std::string mountpoint;  ///< As it was given; else /clusterstorage/VOLUME.
  MountOptions options;
  bool foreground = false;
  bool fake = false;     ///< Look at everything, mount nothing.
  bool verbose = false;  ///< Say what is done.
  bool help = false, version = false;
};
/// `as_helper`: `-f` is mount(8)'s (fake), not ours (foreground).
Expected<MountCommand> parse_mount_command(const std::vector<std::string>& words, bool as_helper);

/// `umount.csvfs MOUNTPOINT …`, as umount(8) calls it.
struct UmountCommand {
  std::string mountpoint;
  bool lazy = false, force = false, fake = false, verbose = false, read_only = false;
  bool if_mounted = false;  ///< Nothing to unmount is well, too.
  bool help = false, version = false;
};
Expected<UmountCommand> parse_umount_command(const std::vector<std::string>& words);

/// Where volumes are mounted unless somebody says otherwise.
std::string default_mountpoint(std::string_view volume);

}  // namespace csv
