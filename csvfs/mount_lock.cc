#include "csvfs/mount_lock.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "csvfs/mount_table.h"

namespace csv {
namespace {

std::string path_of(const std::string& volume, const std::string& folder) {
  return folder + "/mount-" + volume + ".lock";
}

struct Descriptor {
  int fd = -1;
  explicit Descriptor(int of) : fd{of} {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

std::int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

}  // namespace

Expected<std::optional<MountLock>> MountLock::take(const std::string& volume,
                                                   const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Error{error, "making " + folder + ": " + error.message()};
  auto path = path_of(volume, folder);
  // Inherited on purpose: the background process holds it on.
  int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return errno_error(errno, "opening " + path);
  MountLock lock{fd};
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return std::optional{std::move(lock)};
  if (errno == EWOULDBLOCK) return std::optional<MountLock>{};
  return errno_error(errno, "locking " + path);
}

std::optional<MountLock::Holder> MountLock::holder(const std::string& volume,
                                                   const std::string& folder) {
  Descriptor file{::open(path_of(volume, folder).c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0 || ::flock(file.fd, LOCK_SH | LOCK_NB) == 0) return std::nullopt;
  return read(volume, folder);
}

MountLock::Holder MountLock::read(const std::string& volume, const std::string& folder) {
  Holder out;
  std::ifstream file{path_of(volume, folder)};
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("pid ")) out.pid = static_cast<pid_t>(std::atoi(line.c_str() + 4));
    if (line.starts_with("at ")) out.mountpoint = line.substr(3);
    if (line.starts_with("ended ")) out.end = line.substr(6);
  }
  return out;
}

MountLock::~MountLock() {
  if (fd_ >= 0) ::close(fd_);
}

void MountLock::write(const Holder& holder) {
  auto text = "pid " + std::to_string(holder.pid) + "\nat " + holder.mountpoint + "\n";
  if (!holder.end.empty()) text += "ended " + holder.end + "\n";
  // For people and for the helpers' words: nothing depends on it, so a full /run is no error.
  if (::ftruncate(fd_, 0) == 0) (void)!::pwrite(fd_, text.data(), text.size(), 0);
}

bool wait_for_end(pid_t process, Duration limit, const std::string& until_mounted_at) {
  Descriptor pid{static_cast<int>(::syscall(SYS_pidfd_open, process, 0))};
  if (pid.fd < 0) return errno == ESRCH;
  // The kernel says on this file that something was mounted or unmounted.
  Descriptor table{::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC)};
  auto deadline = now_ms() + std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
  for (;;) {
    if (!until_mounted_at.empty() && mounted_at(mount_table(), until_mounted_at)) return false;
    std::array<pollfd, 2> wait{pollfd{pid.fd, POLLIN, 0}, pollfd{table.fd, POLLPRI, 0}};
    auto left = deadline - now_ms();
    if (left <= 0) return false;
    if (::poll(wait.data(), wait.size(), static_cast<int>(left)) < 0 && errno != EINTR)
      return false;
    if ((wait[0].revents & POLLIN) != 0) return true;
  }
}

}  // namespace csv
