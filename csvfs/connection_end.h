#pragma once
#include <sys/types.h>

#include <string>

#include "csvfs/base/error.h"

namespace csv {

/// The end of a FUSE connection, by command: the kernel answers everything that still waits, and
/// programs get ENOTCONN from then on.
///
/// It has to come when csvfs dies, and does not by itself: a thread that waits in the kernel for a
/// page cannot be killed, and as long as it is there the process, its descriptors and the
/// connection are, too. So a small process of its own watches, and ends the connection of a csvfs
/// whose loop thread has ended.
class ConnectionEnd {
 public:
  /// Of what is mounted at `mountpoint`. Called by the loop thread. An error: there is none, and
  /// nothing that is destroyed later may wait for the kernel.
  Expected<void> prepare(const std::string& mountpoint);
  ConnectionEnd() = default;
  ConnectionEnd(const ConnectionEnd&) = delete;
  ConnectionEnd& operator=(const ConnectionEnd&) = delete;
  ~ConnectionEnd();
  void now();

 private:
  int file_ = -1;
  pid_t guardian_ = -1;
};

/// What the process that watches is called (argv[0]), and its main().
inline constexpr const char* kGuardian = "csvfs-guardian";
int guard_connection();

}  // namespace csv
