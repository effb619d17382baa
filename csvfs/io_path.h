#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "csvfs/admission.h"
#include "csvfs/base/status_board.h"
#include "csvfs/coordinator_client.h"
#include "csvfs/file_table.h"
#include "csvfs/interrupt.h"
#include "csvfs/mount.h"

namespace csv {

/// How the content of files is read and written: for each range straight to the LUN under a layout,
/// or through the coordinator where there can be none. Nothing is sent to the LUN past the
/// membership lease, and nothing that was read under a layout is answered past it. I/O of unknown
/// outcome is repeated after the next admission, whose fence ended it. One loop.
///
/// Layouts, and the files they are of, take about `memory` bytes at most; the least recently used
/// are given back. (What is in use is not.)
class IoPath {
 public:
  IoPath(Loop& loop, CoordinatorClient& client, Admission& admission, FileTable& files,
         std::uint64_t memory, std::function<TimePoint()> open_until, MountCounters& counters);

  Task<Expected<Mount::Content>> read(FilePtr file, std::uint64_t offset, std::uint32_t length);
  /// `data` as in Mount::write.
  Task<Expected<std::uint32_t>> write(FilePtr file, std::uint64_t offset,
                                      std::span<const std::byte> data, Mount::WriteOptions options,
                                      Interrupt* interrupt);
  /// What an open handle has been told of the file's losses.
  using Told = std::shared_ptr<std::uint64_t>;
  /// Of one that is opened now: what others were told of does not concern it.
  [[nodiscard]] Told told_of(InodeId inode) const;
  /// Everything answered before the call, of any file, is past the volatile cache; EIO if something
  /// of `file` never came there: once to each handle, and to one that is opened later unless some
  /// handle has been told before.
  Task<Expected<void>> flush(FilePtr file, Interrupt* interrupt, Told told);
  /// The target has lost some of what it had answered, of whichever files.
  void when_forgot(std::function<void()> handler) { when_forgot_ = std::move(handler); }
  [[nodiscard]] bool has_lost(InodeId inode) const { return lost_.contains(inode); }
  /// No handle of the file is left.
  void closed(InodeId inode);
  /// Nobody tells us of sync(2) (docs/mount.md, "Limits"): what nobody asks to be flushed is in the
  /// end. Asked about once a second.
  void flush_old();
  /// Asks for a claim on pages (kernel_pages.h), and puts it into the file. The file's size;
  /// nothing if a recall overtook it: ask again.
  Task<Expected<std::optional<std::uint64_t>>> claim(FilePtr file, Range pages, bool to_store);
  [[nodiscard]] const FileTable& files() const { return *files_; }
  /// Drops layouts; ends when nothing is in flight, or of unknown outcome, under them.
  Task<void> recall(wire::Recall what);

  /// What the coordinator says of the target's memory: with each new session or connection.
  /// Changed: what was answered and not flushed since may be gone. Returns whether that is so.
  bool verified(std::uint64_t verifier);

  /// Something of it that was answered has been lost, and nobody has been told yet.
  [[nodiscard]] bool owes_loss(InodeId inode) const {
    auto found = lost_.find(inode);
    return found != lost_.end() && !found->second.told;
  }

  /// The lease has not run out.
  [[nodiscard]] bool gate_open() const;

 private:
  using Zeros = std::vector<std::pair<std::uint64_t, std::uint64_t>>;  // [begin, end)
  struct Piece {
    std::uint64_t begin = 0, end = 0;  // in the file
    std::uint64_t lun_offset = 0;      // of begin
    ExtentMap::State state{};
    GrantId grant{};
    std::uint64_t truncation = 0;
  };
  struct Plan {
    std::vector<Piece> pieces;
    std::uint64_t covered = 0;  // up to here every byte's place is known
  };
  struct Layout {
    Zeros zeros;
    std::uint64_t size = 0;
    bool shipped = false;  // there is none: the coordinator does it
    bool crossed = false;  // by a recall: nothing of it may be used
  };

  bool usable_now(const File& file) const;
  Task<Expected<void>> usable(FilePtr file, Interrupt* interrupt);
  Task<void> outcome_known(FilePtr file, std::shared_ptr<LunPath> lost);
  enum class Pages : std::uint32_t { none, clean, dirty };  // as the protocol has it
  Task<Expected<Layout>> ask(FilePtr file, std::uint64_t offset, std::uint64_t length, bool write,
                             Interrupt* interrupt, Pages pages = Pages::none);
  void keep_bounded();
  Task<void> give_back(FilePtr file);

  static Plan plan_read(const File& file, std::uint64_t offset, std::uint64_t end,
                        const Zeros& zeros);
  std::optional<Plan> plan_write(const File& file, std::uint64_t offset, std::uint64_t end) const;
  bool worth_a_layout(const File& file, std::uint64_t offset, std::uint64_t end) const;
  Task<Expected<void>> write_pieces(std::shared_ptr<LunPath> path, const Plan& plan,
                                    std::uint64_t offset, std::span<const std::byte> data,
                                    bool durable, RangeSet& landed);
  Task<Expected<void>> commit(FilePtr file, const Plan& plan, std::uint64_t verifier,
                              Unanswered& change);
  Task<Expected<std::uint32_t>> write_however(FilePtr file, std::uint64_t offset,
                                              std::span<const std::byte> data,
                                              Mount::WriteOptions options, Interrupt* interrupt,
                                              Unanswered& change);
  Task<Expected<std::uint32_t>> write_rest(FilePtr file, std::uint64_t offset,
                                           std::span<const std::byte> data,
                                           Mount::WriteOptions options, Interrupt* interrupt,
                                           Unanswered& change, std::uint64_t done,
                                           const RangeSet& landed);
  Task<Expected<void>> flush_everything(FilePtr file, Interrupt* interrupt);
  void written_volatile(const FilePtr& file);
  Task<void> trim_volatile(FilePtr file);
  void forgot();
  void tell_loss(std::uint64_t under);
  Task<void> tell_losses();
  void lost(InodeId inode);
  Expected<void> nothing_lost(const File& file, std::uint64_t& told);
  Task<Expected<Mount::Content>> read_redirected(FilePtr file, std::uint64_t offset,
                                                 std::uint32_t length);
  Task<Expected<std::uint32_t>> write_redirected(FilePtr file, std::uint64_t offset,
                                                 std::span<const std::byte> data,
                                                 Mount::WriteOptions options, Interrupt* interrupt,
                                                 Unanswered& change);
  [[nodiscard]] std::uint64_t block_size() const;

  Loop* loop_;
  CoordinatorClient* client_;
  Admission* admission_;
  FileTable* files_;
  std::uint64_t memory_;
  std::function<TimePoint()> open_until_;
  MountCounters* counters_;
  std::size_t inserted_ = 0;  // extents since they were last counted

  std::uint64_t flush_asked_ = 0, flush_done_ = 0;  // which flush serves whom
  bool flushing_ = false;
  // A7: whose content may be in nothing but the target's volatile cache, and whose was lost there.
  std::optional<std::uint64_t> verifier_;
  std::set<InodeId> volatile_, being_flushed_;
  struct Loss {
    std::uint64_t number = 0;  // counts up: a later one is told again
    bool told = false;         // to somebody
  };
  std::map<InodeId, Loss> lost_;
  std::uint64_t losses_ = 0;
  std::uint64_t forgotten_ = 0;  // how often the target lost its memory
  std::uint64_t told_lost_ = 0;  // of these, how often it was this mount that it told
  std::function<void()> when_forgot_;
  bool trimming_ = false, telling_loss_ = false;
  std::optional<std::uint64_t> untold_;  // the verifier of the newest loss that is to be told yet
  bool tell_next_ = false;               // one came with no coordinator there
  TimePoint volatile_since_{};           // the oldest, if there is any
  Signal flushed_;

  TaskScope tasks_;
};

}  // namespace csv
