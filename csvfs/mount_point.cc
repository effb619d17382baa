#include "csvfs/mount_point.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "csvfs/mount_table.h"

namespace csv {
namespace {

// A csvfs that was unmounted says goodbye for at most 15 s (daemon.cc).
constexpr Duration kEndsWithin = 20s;
constexpr std::size_t kMostUsers = 5;

std::string process_text(pid_t pid) { return "csvfs, process " + std::to_string(pid); }

std::string users_text(const MountEntry& mount, bool for_writing) {
  auto users = users_of(mount, for_writing);
  std::string out;
  for (std::size_t i = 0; i < std::min(users.size(), kMostUsers); ++i)
    out += "\n  " + users[i].program + " (" + std::to_string(users[i].pid) + ") " + users[i].how;
  if (users.size() > kMostUsers)
    out += "\n  and " + std::to_string(users.size() - kMostUsers) + " more";
  if (users.empty())
    out =
        "\n  no process of this node that can be seen; another mount below it, or the kernel "
        "(swap, loop device, NFS)?";
  return out;
}

/// Whether nobody answers there any more. Asked only of mounts whose lock nobody holds, so that it
/// does not wait for anybody.
bool is_dead(const MountEntry& mount) {
  struct stat status {};
  return ::stat(mount.mountpoint.c_str(), &status) != 0 && errno == ENOTCONN;
}

Expected<void> detach_dead(const MountCommand& command, const MountNotes& note) {
  for (const auto& each : mounts_of(mount_table(), command.volume)) {
    if (!is_dead(each))
      return Error{std::errc::device_or_resource_busy,
                   command.volume + " is already mounted at " + each.mountpoint +
                       ", by a csvfs that has not claimed it in " + MountLock::kFolder};
    if (::umount2(each.mountpoint.c_str(), MNT_DETACH) != 0)
      return errno_error(errno, "detaching " + each.mountpoint + ", whose csvfs crashed");
    note("detached " + each.mountpoint + ", whose csvfs had ended without unmounting it");
  }
  return {};
}

Expected<void> make_directory(const MountCommand& command, const std::string& mountpoint) {
  struct stat status {};
  if (::stat(mountpoint.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) return {};
    return Error{std::errc::not_a_directory, "mount point " + mountpoint + " is not a directory"};
  }
  if (errno != ENOENT || mountpoint != default_mountpoint(command.volume))
    return Error{{errno, std::generic_category()},
                 "mount point " + mountpoint + ": " + std::strerror(errno)};
  if (command.fake) return {};
  std::error_code error;
  std::filesystem::create_directories(mountpoint, error);
  if (error) return Error{error, "making mount point " + mountpoint + ": " + error.message()};
  return {};
}

Error taken(const std::string& volume, const MountLock::Holder& by) {
  return Error{std::errc::device_or_resource_busy,
               volume + " is already mounted on this node, at " + by.mountpoint + " (" +
                   process_text(by.pid) + ")"};
}

/// The lock, once a csvfs that is just ending has ended.
Expected<MountLock> take_lock(const MountCommand& command) {
  const auto& volume = command.volume;
  for (;;) {
    auto lock = CSV_TRY(MountLock::take(volume));
    if (lock) return *std::move(lock);
    auto by = MountLock::read(volume);
    if (mounted_at(mount_table(), by.mountpoint)) return taken(volume, by);
    if (by.pid == 0)
      return Error{std::errc::device_or_resource_busy,
                   volume + " is just being mounted by somebody else"};
    if (wait_for_end(by.pid, kEndsWithin, by.mountpoint)) continue;
    if (mounted_at(mount_table(), by.mountpoint)) return taken(volume, by);
    return Error{std::errc::device_or_resource_busy,
                 process_text(by.pid) + ", still has " + volume + " (it is starting, or " +
                     "unmounted and ending) and was left alone; it may tell why in " +
                     command.options.log_file};
  }
}

std::string goodbye_text(const std::string& volume, const std::string& end) {
  if (end.empty())
    return "csvfs ended without a word: it was killed or crashed. Its key on the LUN is removed by "
           "the coordinator of " +
           volume;
  return "csvfs ended, but not in good order: " + end +
         ". Its key on the LUN is removed by the coordinator of " + volume;
}

}  // namespace

Expected<MountPlace> take_mount_place(const MountCommand& command, const MountNotes& note) {
  auto mountpoint = without_touching(command.mountpoint);
  auto lock = CSV_TRY(take_lock(command));
  if (!command.fake) {
    lock.write({.pid = 0, .mountpoint = mountpoint, .end = {}});
    CSV_TRY(detach_dead(command, note));
  }
  auto there = mounted_at(mount_table(), mountpoint);
  if (there && there->type == kMountType && there->source != command.volume)
    return Error{std::errc::device_or_resource_busy,
                 "at " + mountpoint + " volume " + there->source + " is mounted"};
  CSV_TRY(make_directory(command, mountpoint));
  return MountPlace{std::move(lock), std::move(mountpoint)};
}

void tell_umount(const std::string& volume, const std::string& mountpoint, bool wait) {
  const char* words[] = {"mount",        "-c",
                         "-i",           "-f",
                         "-t",           "fuse.csvfs",
                         "-o",           "uhelper=csvfs,_netdev",
                         volume.c_str(), mountpoint.c_str(),
                         nullptr};
  auto child = ::fork();
  if (child == 0) {
    // Its own child where nobody waits, so that none is left to be buried.
    if (!wait && ::fork() != 0) ::_exit(0);
    int null = ::open("/dev/null", O_RDWR);
    for (int each : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, each);
    ::execv("/bin/mount", const_cast<char* const*>(words));
    ::_exit(1);
  }
  if (child > 0)
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
}

Expected<void> remount(const MountCommand& command) {
  auto mountpoint = without_touching(command.mountpoint);
  auto there = mounted_at(mount_table(), mountpoint);
  if (!there || there->type != kMountType)
    return Error{std::errc::invalid_argument, "no csvfs is mounted at " + mountpoint};
  if (there->source != command.volume)
    return Error{std::errc::invalid_argument, "at " + mountpoint + " volume " + there->source +
                                                  " is mounted, not " + command.volume};
  if (command.fake) return {};
  auto flags = command.options.flags.flags;
  if (::mount(nullptr, mountpoint.c_str(), nullptr, MS_REMOUNT | flags, nullptr) == 0) return {};
  auto error = errno;
  if (error == EBUSY && (flags & MS_RDONLY) != 0)
    return Error{
        std::errc::device_or_resource_busy,
        mountpoint + " cannot become read-only while it is written to:" + users_text(*there, true)};
  return errno_error(error, "remounting " + mountpoint);
}

Expected<void> unmount(const UmountCommand& command, const MountNotes& note) {
  auto mountpoint = without_touching(command.mountpoint);
  auto there = mounted_at(mount_table(), mountpoint);
  if (!there || there->type != kMountType) {
    if (command.if_mounted) return {};
    return Error{std::errc::invalid_argument, "no csvfs is mounted at " + mountpoint};
  }
  if (command.fake) return {};
  auto by = MountLock::holder(there->source);
  int flags = (command.lazy ? MNT_DETACH : 0) | (command.force ? MNT_FORCE : 0);
  if (::umount2(mountpoint.c_str(), flags) != 0) {
    auto error = errno;
    if (error == EINVAL && command.if_mounted) return {};  // somebody else was faster
    if (error != EBUSY) return errno_error(error, "unmounting " + mountpoint);
    if (command.read_only &&
        ::mount(nullptr, mountpoint.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0) {
      note(mountpoint + " is busy and was made read-only instead");
      return {};
    }
    return Error{std::errc::device_or_resource_busy,
                 mountpoint + " is busy:" + users_text(*there, false)};
  }
  if (!by || by->pid == 0) return {};  // its csvfs had crashed before
  // Detached: csvfs serves those who still use it, however long.
  if (command.lazy) return {};
  if (!wait_for_end(by->pid, kEndsWithin))
    return Error{std::errc::timed_out,
                 mountpoint + " is unmounted, but " + process_text(by->pid) +
                     ", has not ended: it waits for the coordinator or the LUN of " +
                     there->source + ". Until it ends the volume cannot be mounted here"};
  auto left = MountLock::read(there->source);
  if (left.pid == by->pid && left.end != MountLock::kGoodEnd)
    note(goodbye_text(there->source, left.end));
  return {};
}

}  // namespace csv
