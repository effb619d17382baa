#pragma once
#include <sys/types.h>

#include <map>
#include <optional>
#include <string>

#include "csvfs/base/loop.h"
#include "csvfs/base/task.h"
#include "csvfs/mount.h"

namespace csv {

/// Threads whose path the kernel walks once more. What it has just found another node may remove
/// before the kernel asks for it by its inode; ESTALE then makes it look again, but only once: the
/// next time the program would see it. So what such a thread finds is kept open, and lives on
/// without a name, as what a program has found on a local file system does. That lasts until the
/// thread has opened or made a file, finds something else, or its time is over; it may never come
/// back. Directories are not kept: nothing tells the coordinator of those that are in use.
///
/// Costs nothing unless somebody is told ESTALE. One loop. Destroy the Mount first, as with
/// all tasks that wait for it (mount.h).
class SecondWalks {
 public:
  SecondWalks(Loop& loop, Mount& mount) : loop_{loop}, mount_{mount} {}
  /// How long one lasts from the ESTALE on, without the time that requests wait for the
  /// coordinator. A program that is not given a processor for longer may see ESTALE.
  void last(Duration lasts) { lasts_ = lasts; }

  /// The thread is told ESTALE.
  void begins(pid_t thread);
  [[nodiscard]] bool under_way(pid_t thread) const { return walks_.contains(thread); }
  /// Mount::lookup, for a thread whose second walk is under way. What it finds is kept; if it
  /// cannot be, the look-up counts all the same. Who is interrupted need not wait for it: what it
  /// then keeps ends in time.
  Task<Expected<wire::Attr>> lookup(pid_t thread, InodeId parent, std::string name);
  /// The thread begins to open or make something, and ends() is called then. Whether its second
  /// walk is under way.
  bool waits(pid_t thread);
  /// The thread has opened something, or has failed to. What it opened has a handle of its own.
  void ends(pid_t thread);

 private:
  struct Walk {
    TimePoint until{};
    int waiting = 0;    ///< Requests not answered yet: it does not end by itself meanwhile.
    TimePoint since{};  ///< When the first of those came.
    std::optional<Mount::Handle> kept;
  };
  void has_waited(pid_t thread);
  void keep(pid_t thread, Mount::Handle found);
  Task<void> end_in_time();

  Loop& loop_;
  Mount& mount_;
  Duration lasts_{};
  std::map<pid_t, Walk> walks_;
  bool timed_ = false;
  TaskScope tasks_;
};

}  // namespace csv
