#pragma once
#include <sys/types.h>

#include <optional>
#include <string>

#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"

namespace csv {

/// The claim of a csvfs on its volume: one process a volume on a node. A lock file, /run/csvfs/
/// mount-VOLUME.lock, which the kernel unlocks when the last process that inherited it ends,
/// however it ends. What stands in it says who holds it, and how its last holder ended.
class MountLock {
 public:
  struct Holder {
    pid_t pid = 0;           ///< 0: a mount that is just being made.
    std::string mountpoint;  ///< Where it is mounted, or is going to be.
    std::string end;         ///< How it ended: empty before, and after a crash.
  };
  static constexpr const char* kFolder = "/run/csvfs";
  /// What `end` says of a csvfs that left nothing behind on the LUN.
  static constexpr const char* kGoodEnd = "in good order";

  /// Nothing where somebody else holds it.
  static Expected<std::optional<MountLock>> take(const std::string& volume,
                                                 const std::string& folder = kFolder);
  /// Who holds it; nothing where nobody does.
  static std::optional<Holder> holder(const std::string& volume,
                                      const std::string& folder = kFolder);
  /// What stands in it, held or not.
  static Holder read(const std::string& volume, const std::string& folder = kFolder);

  MountLock(MountLock&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
  MountLock& operator=(MountLock&&) = delete;
  ~MountLock();  ///< Lets go, unless a child has inherited it.

  void write(const Holder& holder);

 private:
  explicit MountLock(int fd) : fd_{fd} {}
  int fd_;
};

/// Waits for the end of a process that is no child of ours; whether it ended. `until_mounted_at`:
/// also for something to be mounted there.
bool wait_for_end(pid_t process, Duration limit, const std::string& until_mounted_at = {});

}  // namespace csv
