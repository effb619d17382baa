#pragma once
#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "csvfs/base/asio_loop.h"
#include "csvfs/mount.h"
#include "csvfs/mount_options.h"

namespace csv {

/// A Mount at a mount point: reads the kernel's requests on the mount's loop and has each answered.
/// No thread of its own: a request is read, sent on and answered by the one loop thread, so nothing
/// is handed between threads. All calls on the loop's thread. Destroy the Mount first (mount.h).
///
/// A program that is being killed does not wait: its look-ups and reads are given up, and so are
/// its changes, unless they have been sent; then after the membership lease's term, and it is
/// logged that nobody knows. A signal that a program handles interrupts nothing, as on a local file
/// system, but for waiting for a lock, which ends at once.
class FuseSession {
 public:
  struct Options {
    std::string source;  ///< What df and /proc/mounts show: the volume's name.
    MountFlags flags;
    std::function<void()> requested = {};  ///< With each request of the kernel's; may be empty.
    /// Whether a thread is being killed. Where none is given: from /proc.
    std::function<bool(pid_t)> dying;
    Duration second_walk = std::chrono::seconds{2};  ///< How long one lasts (second_walks.h).
  };
  /// Mounts at `mountpoint`, or on nothing where `descriptor` is a socket to a test that plays the
  /// kernel. `on_ended` comes once, when the kernel has unmounted us.
  static Expected<std::unique_ptr<FuseSession>> start(AsioLoop& loop, Mount& mount,
                                                      const std::string& mountpoint,
                                                      const Options& options,
                                                      std::function<void()> on_ended,
                                                      int descriptor = -1);
  virtual ~FuseSession() = default;  ///< Unmounts; requests still waiting are answered EIO.
  /// Takes the mount point away (lazily, if it is busy); on_ended follows.
  virtual void unmount() = 0;
  [[nodiscard]] virtual std::uint64_t operations() const = 0;
};

}  // namespace csv
