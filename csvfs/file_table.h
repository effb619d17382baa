#pragma once
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "csvfs/base/ids.h"
#include "csvfs/base/range_set.h"
#include "csvfs/base/task.h"
#include "csvfs/extent_map.h"

namespace csv {

/// What the node's kernel may hold of a file's content, in bytes, whole pages (kernel_pages.h).
struct FilePages {
  int writers = 0;  ///< Handles open for writing: programs may store into any page.
  /// Claims: what the coordinator lets the kernel hold, to look at, or also to store into.
  RangeSet clean, dirty;
  [[nodiscard]] bool claimed(Range range, bool to_store) const {
    return dirty.covers(range) || (!to_store && clean.covers(range));
  }
  RangeSet held;  ///< Answered, and not known to have been dropped since.

  struct Reading {
    Range range;
    bool granted = false;    ///< Claimed: it needs the LUN only.
    bool overtaken = false;  ///< By what changes the content.
  };
  std::list<Reading> reading;  ///< Requests not answered yet: the kernel has nothing there.
  struct Closing {
    Range range;
    std::optional<TimePoint> recalled;  ///< Another node waits for them, since then.
  };
  std::list<Closing> closed;
  struct Pass {
    RangeSet ranges;  ///< That the kernel is dropping.
    bool done = false;
    bool overtaken = false;  ///< It may stand behind a request that waits.
  };
  std::vector<std::shared_ptr<Pass>> passes;
  TimePoint handed_over{};     ///< When the kernel last got some.
  std::uint64_t recalled = 0;  ///< Sequence of the newest recall of pages that was answered.
  std::list<Range> lapsing;    ///< They go because the lease ends.
  std::list<Range> renewed;    ///< They go because the LUN may have less than they show.

  [[nodiscard]] bool is_closed(Range range) const;
  /// Since when another node has been waiting for some of it.
  [[nodiscard]] std::optional<TimePoint> recalled_since(Range range) const;
  [[nodiscard]] bool any() const { return !clean.empty() || !dirty.empty() || !held.empty(); }
  /// The kernel has some, or is about to get some: now, or while somebody waits.
  [[nodiscard]] bool in_use() const { return any() || !reading.empty() || writers > 0; }
  void trim(std::uint64_t size);  ///< A claim beyond the end of the file is none.
  void forget();                  ///< Nobody can look at them any more.
};

/// A file as one session of the mount knows it: its layouts, what is in flight on it, and
/// what the coordinator has yet to be told. Dies with the session, whatever handles still point at
/// it.
struct File {
  File(Loop& loop, InodeId its_inode, SessionId its_session)
      : inode{its_inode}, session{its_session}, changed{loop} {}

  const InodeId inode;
  const SessionId session;
  bool ended = false;  ///< The session has: nothing goes on with this any more.
  /// What then becomes of the handles: another File's, if the coordinator kept what was open and
  /// nobody has touched it since.
  enum class Fate { not_known, goes_on, over };
  Fate fate = Fate::not_known;
  /// A change of it was sent, and who asked for it was not answered before the session ended: done
  /// again it could stand there twice, or undo what others have done since. It must not go on.
  bool doubtful = false;
  bool had_pages = false;  ///< When it ended, the kernel may have had pages of it.
  /// For each change that is under way, whether it may have taken effect where others can see, and
  /// change, it. (Unanswered)
  std::set<const bool*> unanswered;

  ExtentMap extents;
  std::uint64_t size = 0;  ///< As last heard of. A hint: it decides how to ask, never the answer.
  std::uint64_t truncation = 0;  ///< As last heard of.
  std::uint64_t recalled = 0;    ///< Sequence of the newest recall; older layouts are not used.
  TimePoint shipped_until{};     ///< Until then the coordinator does all writes.
  std::uint64_t used = 0;        ///< When, by the table's count: the least recent goes first.
  bool wrote = false;            ///< Written directly since the coordinator was last told.
  std::uint32_t told_wrote = 0;  ///< How often it was told so with a look or a change.
  bool accessed = false;         ///< Read, so that its access time is due, and not told yet.
  std::int64_t atime = 0, mtime = 0, ctime = 0;  ///< As last heard of; they decide `accessed`.

  int handles = 0;         ///< Of programs.
  int asking = 0;          ///< Layout requests not answered yet.
  int releasing = 0;       ///< Last handles closed, and the Release not answered yet.
  bool returning = false;  ///< A Release or LayoutReturn is on its way: ask for nothing meanwhile.

  /// I/O under a layout: of which nobody knows yet that it has ended.
  struct Range {
    std::uint64_t begin = 0, end = 0;
    bool write = false;
    bool alone = false;   ///< No other write may overlap: it pads its last block with zeros.
    bool landed = false;  ///< Answered by the LUN, and not yet committed: no recall waits for it.
  };
  std::list<Range> in_flight;
  FilePages pages;
  Signal changed;  ///< Of in_flight, asking, returning, ended, fate, pages.

  /// Nobody but the session's own mount can have anything of it that is not on the LUN.
  [[nodiscard]] bool only_reads() const;

  [[nodiscard]] bool busy(std::uint64_t begin, std::uint64_t end, bool writes_only) const;
  [[nodiscard]] bool collides(const Range& write) const;
};
using FilePtr = std::shared_ptr<File>;

/// That I/O is in flight on a range, for as long as it lives: of a write until it is part of the
/// file, so that no padding is laid over what was answered.
class InFlight {
 public:
  InFlight(FilePtr file, File::Range range) : file_{std::move(file)} {
    at_ = file_->in_flight.insert(file_->in_flight.end(), range);
  }
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;
  void landed() {
    at_->landed = true;
    file_->changed.notify();
  }
  ~InFlight() {
    file_->in_flight.erase(at_);
    file_->changed.notify();
  }

 private:
  FilePtr file_;
  std::list<File::Range>::iterator at_;
};

/// A change of a file that somebody waits for, for as long as it lives. If the session ends after
/// may_show(), and before that, the file is doubtful.
class Unanswered {
 public:
  explicit Unanswered(FilePtr file) : file_{std::move(file)} { file_->unanswered.insert(&shows_); }
  Unanswered(const Unanswered&) = delete;
  Unanswered& operator=(const Unanswered&) = delete;
  ~Unanswered() {
    file_->unanswered.erase(&shows_);
    // The end of a session takes it up, but does not wait for who hears of it later.
    if (shows_ && !succeeded_ && file_->ended) file_->doubtful = true;
  }
  void may_show() { shows_ = true; }
  void succeeded() { succeeded_ = true; }
  /// For CoordinatorClient::CallOptions.
  [[nodiscard]] bool* sent() { return &shows_; }

 private:
  FilePtr file_;
  bool shows_ = false, succeeded_ = false;
};

/// The files that programs have open or that there are layouts of, by inode. One loop.
class FileTable {
 public:
  explicit FileTable(Loop& loop) : loop_{&loop} {}
  FilePtr find(InodeId inode) const;
  FilePtr get(InodeId inode, SessionId session);  ///< Made if need be.
  /// No effect if it is used: open, being closed, or there are layouts of it or I/O under them.
  void forget_unused(const FilePtr& file);
  void end_session();
  void begin_epoch();  ///< The coordinator's recalls are counted anew.
  void touch(File& file) { file.used = ++count_; }
  /// The files whose layouts may be dropped now, the longest unused first.
  [[nodiscard]] std::vector<FilePtr> unused_first() const;
  /// With what the map and an unused Signal take beside it.
  static constexpr std::size_t kFileBytes = sizeof(File) + 704;
  static constexpr std::size_t kExtentBytes = 112;
  [[nodiscard]] static std::size_t bytes(const File& file);  ///< Beside being open, about.
  [[nodiscard]] std::size_t bytes() const;                   ///< All of them.
  [[nodiscard]] const std::map<InodeId, FilePtr>& all() const { return files_; }

 private:
  Loop* loop_;
  std::map<InodeId, FilePtr> files_;
  std::uint64_t count_ = 0;
};

}  // namespace csv
