#pragma once
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <vector>

#include "csvfs/base/range_set.h"
#include "csvfs/file_table.h"
#include "csvfs/io_path.h"
#include "csvfs/mount.h"

namespace csv {

/// What this node's kernel may hold of the content of files: the pages of mappings, and whatever
/// else it reads through its page cache (sendfile, programs it runs). It says nothing of stores
/// into them until it writes them, so the coordinator is asked *before* a page is handed over
/// (a claim, FilePages): to one node alone where a program may store, to many where none can. A
/// recall has the kernel write and drop what it has.
///
/// The daemon sees requests only, so what the kernel holds is known from two things: a page that
/// was answered and not dropped since may be there, and one that is asked for is not.
/// docs/mount.md, "Shared mappings", says what crosses what. One loop.
class KernelPages {
 public:
  KernelPages(Loop& loop, IoPath& io, std::function<TimePoint()> open_until)
      : loop_{&loop}, io_{&io}, open_until_{std::move(open_until)} {}

  void drop_with(Mount::DropPages drop) { drop_ = std::move(drop); }

  /// A request of the page cache. The answer must reach the kernel without a wait in between.
  /// With `interrupt` raised the kernel has been answered, and may ask for the same pages again.
  Task<Expected<Mount::Content>> read(FilePtr file, std::uint64_t offset, std::uint32_t length,
                                      Interrupt* interrupt);

  /// No pages of a range are handed over as long as it lives: those that are asked for wait, and
  /// those whose content is on its way are read anew.
  class Closed {
   public:
    /// `recalled`: since when another node waits for it; else it is for this one's own sake.
    explicit Closed(FilePtr file, Range range, std::optional<TimePoint> recalled = std::nullopt);
    Closed(const Closed&) = delete;
    Closed& operator=(const Closed&) = delete;
    ~Closed();

   private:
    FilePtr file_;
    std::list<FilePages::Closing>::iterator at_;
  };
  /// Of a closed range: ends when the kernel holds nothing of it, and what was stored is written.
  /// Sooner with `interrupt` raised: whoever is being killed must not have to wait for the LUN.
  Task<void> clear(FilePtr file, Range range, Interrupt* interrupt = nullptr);
  /// The same of a range that is not closed yet, and the claim on it is given up, up to the recall
  /// with `sequence`. `answer` before anything of the range is asked for again.
  Task<void> give_up(FilePtr file, Range range, std::uint64_t sequence, Function<void()> answer);
  /// The target has lost what it had answered. Pages may show more than the LUN has, and would
  /// bring it back whole, with the next store into them, after others have seen that it is gone:
  /// they go, and nobody on this node reads there before (FilePages::renewed).
  void target_lost();
  /// How often: what was read before the last time may be gone.
  [[nodiscard]] std::uint64_t losses() const { return losses_; }
  /// Before content changes by something else than the kernel's own pages.
  [[nodiscard]] static Range pages_of(std::uint64_t offset, std::uint64_t length);

 private:
  Task<void> let_use(FilePtr file, Range range);
  Task<void> drop_beyond_end(FilePtr file, Range range);
  [[nodiscard]] bool lease_lasts() const;
  Task<void> watch_lease();
  Task<void> lapse(FilePtr file, Range part);
  Task<void> renew(FilePtr file, Range part);

  Loop* loop_;
  IoPath* io_;
  std::function<TimePoint()> open_until_;
  Mount::DropPages drop_;
  bool watching_ = false;
  std::uint64_t losses_ = 0;
  TaskScope tasks_;
};

}  // namespace csv
