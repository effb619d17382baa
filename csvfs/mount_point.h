#pragma once
#include <functional>
#include <string>

#include "csvfs/mount_command.h"
#include "csvfs/mount_lock.h"

namespace csv {

/// What mount(8) and umount(8) want of a mount point, around the csvfs that serves it. Everything
/// here may wait, and talks to the kernel only; no function touches a file system that may be dead.
/// `note` gets what the user should know although it went well, a sentence each.
using MountNotes = std::function<void(const std::string&)>;

struct MountPlace {
  MountLock lock;          ///< Held from here to the end of the csvfs.
  std::string mountpoint;  ///< Absolute, a directory, and nothing dead on it.
};
/// Everything before csvfs can start: the volume is nobody else's on this node (one that is just
/// ending is waited for), what a crashed csvfs left mounted is detached, and the directory exists;
/// /clusterstorage/VOLUME is made if need be.
Expected<MountPlace> take_mount_place(const MountCommand& command, const MountNotes& note);

/// Makes umount(8) ask umount.csvfs, and systemd unmount before the network and csvd end: without
/// an entry in mount's own table (/run/mount/utab), which mount(8) itself is the one to write, it
/// asks no helper, and does not wait for csvfs to end. `wait`: not from the process that serves the
/// mount, which mount(8) may look at.
void tell_umount(const std::string& volume, const std::string& mountpoint, bool wait);

/// Changes the flags of a mounted volume.
Expected<void> remount(const MountCommand& command);

/// Unmounts, and returns when the csvfs behind it has ended. Fails with who uses it, or with what
/// csvfs still waits for.
Expected<void> unmount(const UmountCommand& command, const MountNotes& note);

}  // namespace csv
