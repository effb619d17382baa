#pragma once
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "csvfs/base/ids.h"
#include "csvfs/base/task.h"
#include "csvfs/extent_map.h"

namespace csv {

/// A file as one session of the mount knows it: its layouts, what is in flight on it, and
/// what the coordinator has yet to be told. Dies with the session, whatever handles still point at
/// it.
struct File {
  File(Loop& loop, InodeId its_inode, SessionId its_session)
      : inode{its_inode}, session{its_session}, changed{loop} {}

  const InodeId inode;
  const SessionId session;
  bool ended = false;  ///< The session has: everything fails with EIO from now on.

  ExtentMap extents;
  std::uint64_t size = 0;  ///< As last heard of. A hint: it decides how to ask, never the answer.
  std::uint64_t recalled = 0;  ///< Sequence of the newest recall; older layouts are not used.
  TimePoint shipped_until{};   ///< Until then the coordinator does all writes.
  std::uint64_t used = 0;      ///< When, by the table's count: the least recent goes first.
  bool wrote = false;          ///< Written directly since the coordinator was last told.
  bool accessed = false;       ///< Read, so that its access time is due, and not told yet.
  std::int64_t atime = 0, mtime = 0, ctime = 0;  ///< As last heard of; they decide `accessed`.

  int handles = 0;         ///< Of programs.
  int asking = 0;          ///< Layout requests not answered yet.
  bool returning = false;  ///< A Release or LayoutReturn is on its way: ask for nothing meanwhile.

  /// I/O under a layout: of which nobody knows yet that it has ended.
  struct Range {
    std::uint64_t begin = 0, end = 0;
    bool write = false;
    bool alone = false;  ///< No other write may overlap: it pads its last block with zeros.
  };
  std::list<Range> in_flight;
  Signal changed;  ///< Of in_flight, asking, returning, ended.

  [[nodiscard]] bool busy(std::uint64_t begin, std::uint64_t end, bool writes_only) const;
  [[nodiscard]] bool collides(const Range& write) const;
};
using FilePtr = std::shared_ptr<File>;

/// That I/O is in flight on a range, for as long as it lives.
class InFlight {
 public:
  InFlight(FilePtr file, File::Range range) : file_{std::move(file)} {
    at_ = file_->in_flight.insert(file_->in_flight.end(), range);
  }
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;
  ~InFlight() {
    file_->in_flight.erase(at_);
    file_->changed.notify();
  }

 private:
  FilePtr file_;
  std::list<File::Range>::iterator at_;
};

/// The files that programs have open or that there are layouts of, by inode. One loop.
class FileTable {
 public:
  explicit FileTable(Loop& loop) : loop_{&loop} {}
  FilePtr find(InodeId inode) const;
  FilePtr get(InodeId inode, SessionId session);  ///< Made if need be.
  void forget_unused(const FilePtr& file);        ///< No effect if it is not.
  void end_session();
  void begin_epoch();  ///< The coordinator's recalls are counted anew.
  void touch(File& file) { file.used = ++count_; }
  /// The files whose layouts may be dropped now, the longest unused first.
  [[nodiscard]] std::vector<FilePtr> unused_first() const;
  [[nodiscard]] std::size_t extents() const;
  [[nodiscard]] const std::map<InodeId, FilePtr>& all() const { return files_; }

 private:
  Loop* loop_;
  std::map<InodeId, FilePtr> files_;
  std::uint64_t count_ = 0;
};

}  // namespace csv
