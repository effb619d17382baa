#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "csvfs/base/task.h"
#include "csvfs/mount.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// The page cache of a node's kernel: what mappings show, what is stored into them, and when a
/// mount hears of that. Pages of a file belong to the session under which it was opened. On the
/// mount's loop; programs wait in it, so it goes with them.
class PageCache {
 public:
  PageCache(SimLoop& loop, Mount& mount, std::function<TimePoint()> open_until);

  struct File {
    InodeId inode{};
    SessionId session{};  ///< Under which `handle` was opened.
    Mount::Handle handle{};
  };
  /// What a mapping shows there, within one page. EFAULT where the file has ended (SIGBUS).
  Task<Expected<std::vector<std::byte>>> load(File file, std::uint64_t offset, std::size_t length);
  /// Stored, and msync'ed.
  Task<Expected<void>> store(File file, std::uint64_t offset, std::vector<std::byte> data);

  // What the kernel does of itself around the calls of programs.
  Task<void> before_read(InodeId inode, std::uint64_t offset, std::uint64_t length);
  Task<void> before_write(InodeId inode, std::uint64_t offset, std::uint64_t length);
  /// Writes no pages of the file until the truncation is answered.
  Task<void> before_truncate(InodeId inode);
  Task<void> after_truncate(InodeId inode, std::uint64_t size, bool done);
  Task<void> after_punch(InodeId inode, std::uint64_t offset, std::uint64_t length);
  Task<void> after_open(InodeId inode);
  Task<void> before_close(File file);

  bool keeps_pages = false;  ///< Whatever it is told to drop: to see that this shows.
  Duration drop_takes{};     ///< To drop pages, once it is told.

 private:
  using Key = std::pair<InodeId, std::uint64_t>;
  struct Page {
    std::vector<std::byte> content;  ///< As far as the file reached.
    bool dirty = false, locked = false;
    File by;  ///< Who reads and writes it.
  };
  Task<void> until_mount_has_seen_to(Key key);
  Task<Expected<void>> fault(File file, std::uint64_t index);
  Task<Expected<void>> write_back(Key key);
  Task<void> drop_page(Key key, bool discard);
  Task<void> drop_range(InodeId inode, std::uint64_t offset, std::uint64_t length, bool discard);
  Task<void> drop(InodeId inode, std::vector<Range> ranges, Function<void()> done);
  Task<Page*> unlocked(Key key);
  [[nodiscard]] std::vector<Key> pages_of(InodeId inode, Range bytes) const;

  SimLoop* loop_;
  Mount* mount_;
  std::function<TimePoint()> open_until_;
  std::map<Key, Page> pages_;
  std::map<InodeId, int> truncating_;
  std::map<InodeId, std::uint64_t> failures_;  ///< Write-backs, for whoever syncs next.
  Signal changed_;
  TaskScope tasks_;
};

}  // namespace csv::sim
