#include "csvfs/connection_end.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

#include "csvfs/mount_table.h"

namespace csv {
namespace {

constexpr int kFile = 3;  // the guardian's

/// The kernel's control files, whether or not somebody has mounted them.
Expected<int> control_files() {
  int system = ::fsopen("fusectl", FSOPEN_CLOEXEC);
  if (system < 0) return errno_error(errno, "opening the control files of FUSE");
  int made = ::fsconfig(system, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0);
  int root = made == 0 ? ::fsmount(system, FSMOUNT_CLOEXEC, 0) : -1;
  auto error = errno;
  ::close(system);
  if (root < 0) return errno_error(error, "mounting the control files of FUSE");
  return root;
}

}  // namespace

Expected<void> ConnectionEnd::prepare(const std::string& mountpoint) {
  auto entry = mounted_at(mount_table(), mountpoint);
  if (!entry) return Error{Errc::refused, "nothing is mounted at " + mountpoint};
  auto name = std::to_string(entry->device_minor) + "/abort";
  auto usual = "/sys/fs/fuse/connections/" + name;
  file_ = ::open(usual.c_str(), O_WRONLY | O_CLOEXEC);
  if (file_ < 0) {
    int root = CSV_TRY(control_files());
    file_ = ::openat(root, name.c_str(), O_WRONLY | O_CLOEXEC);
    auto error = errno;
    ::close(root);
    if (file_ < 0) return errno_error(error, "opening the connection's control file");
  }
  auto parent = ::getpid();
  guardian_ = ::fork();
  if (guardian_ < 0) return errno_error(errno, "starting the process that watches");
  if (guardian_ > 0) return {};
  // Other threads had locks when they were left behind: system calls only.
  if (file_ == kFile)
    ::fcntl(kFile, F_SETFD, 0);
  else
    ::dup2(file_, kFile);
  ::prctl(PR_SET_PDEATHSIG, SIGUSR1);
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);  // it waits for them
  if (::getppid() != parent) ::_exit(1);
  std::array<char*, 2> words{const_cast<char*>(kGuardian), nullptr};
  ::execv("/proc/self/exe", words.data());
  ::_exit(1);
}

void ConnectionEnd::now() {
  if (file_ >= 0) (void)!::write(file_, "1", 1);
}

ConnectionEnd::~ConnectionEnd() {
  if (file_ >= 0) ::close(file_);
  if (guardian_ <= 0) return;
  ::kill(guardian_, SIGKILL);
  while (::waitpid(guardian_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

int guard_connection() {
  ::prctl(PR_SET_NAME, kGuardian);
  ::close_range(kFile + 1, ~0u, 0);
  (void)!::chdir("/");
  sigset_t orphaned;
  sigemptyset(&orphaned);
  sigaddset(&orphaned, SIGUSR1);
  int signal = 0;
  while (::sigwait(&orphaned, &signal) != 0) {
  }
  return ::write(kFile, "1", 1) == 1 ? 0 : 1;
}

}  // namespace csv
