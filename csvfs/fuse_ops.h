#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "csvfs/base/name_cache.h"
#include "csvfs/mount.h"
#include "csvfs/reply.h"
#include "csvfs/second_walks.h"

namespace csv {

/// What the FUSE operations work on; the session's userdata. All on the mount's loop.
struct FuseState {
  FuseState(Loop& loop, Mount& its_mount) : mount{&its_mount}, second_walks{loop, its_mount} {}

  Mount* mount;
  /// The buffer of the request being processed. An operation that needs its bytes longer than its
  /// call (a write) takes it; otherwise the reader uses it again. A write's content stands behind
  /// two headers; the buffer is placed so that it is aligned for the LUN, and never copied.
  struct RequestBuffer {
    Buffer memory;
    fuse_buf buffer{};
    RequestBuffer() = default;
    RequestBuffer(RequestBuffer&& other) noexcept
        : memory{std::move(other.memory)}, buffer{std::exchange(other.buffer, fuse_buf{})} {}
    RequestBuffer& operator=(RequestBuffer&& other) noexcept {
      memory = std::move(other.memory);
      buffer = std::exchange(other.buffer, fuse_buf{});
      return *this;
    }
    ~RequestBuffer() = default;
    static RequestBuffer made();
  };
  RequestBuffer current;
  std::vector<RequestBuffer> spare;  ///< So that large requests do not fault fresh pages in.
  std::size_t kept = 0;              ///< By writes under way.
  /// What stat and statfs of the root say while the volume cannot be reached, so that df and
  /// monitoring do not hang (last known values).
  std::optional<wire::Attr> root;
  std::optional<wire::FsStat> statistics;
  bool access_times = true;  ///< Not mounted noatime.
  /// What the kernel really asked for, where libfuse is given something it knows instead.
  std::uint32_t opcode = 0;
  std::uint64_t taken = 0;  ///< Of INIT's flags, those that libfuse does not know.
  // Shared mappings of files that are otherwise read and written directly (Linux 6.6).
  static constexpr std::uint64_t kDirectIoAllowMmap = 1ull << 36;
  std::uint64_t declined = 0;        ///< Of what could be taken.
  bool greeted = false;              ///< INIT has been answered.
  std::uint32_t setxattr_flags = 0;  ///< Which libfuse does not know either.
  std::function<void()> on_destroy;  ///< The kernel unmounted us.
  /// The program that waits for this got a signal. Called from inside libfuse: act later.
  std::function<void(std::weak_ptr<Owed>)> on_interrupt;

  // Node ids, the kernel's names of inodes, are inode numbers with a count of *lives* above them. A
  // file that was open, and mapped perhaps, when a session ended begins another life: to the kernel
  // it is another inode, with pages of its own. So what a program still writes into an old mapping
  // goes nowhere (A3).
  [[nodiscard]] fuse_ino_t node_of(std::uint64_t inode) const;
  [[nodiscard]] static InodeId inode_of(fuse_ino_t node);
  [[nodiscard]] bool is_past(fuse_ino_t node) const { return node != node_of(raw(inode_of(node))); }
  std::map<std::uint64_t, std::uint64_t> lives;  ///< Of inodes that do not live their first.

  /// Attributes of what lost its last name here, as long as the kernel knows it: a program may
  /// still stand in a removed directory.
  std::map<std::uint64_t, wire::Attr> ghosts;
  /// Directories that were looked up, as they were found. A look-up that fails, but for want of
  /// memory, makes the kernel drop what it knows of the name, and with a directory it detaches what
  /// programs have mounted anywhere below. So where a node is kept out those that it may know are
  /// found all the same, and what is asked of them then fails.
  NameCache<wire::Attr> directories{16384};
  /// Begun by every answer ESTALE.
  SecondWalks second_walks;
  /// The requests under way. Last: they use everything above.
  TaskScope requests;
};

/// One FUSE operation each: unpack, call Mount, answer.
const fuse_lowlevel_ops& fuse_ops();

}  // namespace csv
