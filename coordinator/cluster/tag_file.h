#pragma once
#include <sys/types.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/thread_worker.h"

namespace csv::cluster {

/// A file of two slots on a share that all nodes mount. What lies in the slots is the witness's
/// affair (share_witness.h). One loop; every call is answered on it, once, after some deadline of
/// the implementation at the latest.
class TagFile {
 public:
  static constexpr std::size_t kSlot = 4096;
  using Slot = std::array<std::byte, kSlot>;
  using Content = std::array<Slot, 2>;

  virtual ~TagFile() = default;
  /// What is there now; zeros where nothing was ever written.
  virtual void read(Function<void(Expected<Content>)> done) = 0;
  /// Writes `next` to slot `place` if the whole content is still `expected`, all under a lock that
  /// nobody else can hold meanwhile: read, compare, write, make durable, read back. Errc::retry if
  /// the content is another one; nothing is changed then. After any other error it may have been
  /// written, or may yet be, as long as the content is still `expected`.
  virtual void exchange(const Content& expected, std::size_t place, const Slot& next,
                        Function<void(Expected<void>)> done) = 0;
};

/// The file system that a path lies on, as the kernel's list of mounts names it.
struct ShareMount {
  ::dev_t device = 0;
  std::string type;     ///< "nfs4", "cifs", …
  std::string options;  ///< Of the superblock, separated by commas.
};
/// From the text of /proc/self/mountinfo; `path` is absolute and without symbolic links.
Expected<ShareMount> mount_of(std::string_view mountinfo, const std::string& path);
/// Errc::refused, with what is wrong, unless byte-range locks bind writes there across nodes and
/// server restarts: NFS 4.x or SMB 3, locks not made local.
Expected<void> check_share(const ShareMount& mount);

/// The file at `path`. A process of its own does everything that touches the share and so may hang
/// with it: past the deadline it is killed and left behind, and the call fails. A hanging share
/// costs at most kMostHanging processes, until they can die.
class SharedTagFile final : public TagFile {
 public:
  struct Options {
    std::string path;  ///< Absolute.
    /// The file is made if need be; its directory is not. Only where it becomes a witness: one that
    /// is gone has forgotten what it promised, and an empty one must not take its place.
    bool create = false;
    Duration deadline = 2s;
    bool any_file_system = false;  ///< For tests: takes what check_share() refuses.
  };
  static constexpr std::size_t kMostHanging = 4;

  SharedTagFile(Loop& home, Options options);
  ~SharedTagFile() override;  ///< Waits for the call that runs, at most its deadline.

  void read(Function<void(Expected<Content>)> done) override;
  void exchange(const Content& expected, std::size_t place, const Slot& next,
                Function<void(Expected<void>)> done) override;

 private:
  struct Helper;
  Loop* home_;
  std::shared_ptr<Helper> helper_;
  std::unique_ptr<ThreadWorker> worker_;
};

}  // namespace csv::cluster
