#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/loop.h"

namespace csv::sim {

/// Number of a write, in the whole simulation. 0: zeros.
using Stamp = std::uint64_t;

/// What write `stamp` puts at `offset` of a file: every write has bytes of its own everywhere.
void fill_pattern(std::span<std::byte> out, std::uint64_t offset, Stamp stamp);

/// Judges what is read from one file, as a register a byte: a read shows, at each place, a write
/// that was under way or the last that had ended before the read began. A write that nobody heard
/// the end of may show from its beginning on, or never; once it is settled, what a first read shows
/// of it must stay.
///
/// A power loss of the target may take back whatever had not been flushed, in any part. A sync that
/// succeeds says that all its mount wrote before is there, unless an earlier one has failed for it.
class FileContent {
 public:
  /// The file is new: all zeros.
  FileContent() = default;

  using Id = std::uint64_t;
  using Writer = const void*;  ///< A mount's life.
  struct How {
    Writer by = nullptr;
    bool durable = false;  ///< Once it has ended.
    bool mapped = false;   ///< Stored into a page, of which more may be kept than the file has.
  };
  /// Of a write, or with stamp 0 of zeros (a truncate, a punched hole).
  Id begin(std::uint64_t from, std::uint64_t to, Stamp stamp, Duration now, How how);
  Id begin(std::uint64_t from, std::uint64_t to, Stamp stamp, Duration now) {
    return begin(from, to, stamp, now, {nullptr, true});
  }
  /// Of a clone: from now on the range may show whatever `source`, perhaps this file itself, can
  /// show `behind` bytes earlier (or later) between now and the end. `source` outlives it.
  Id begin_copy(std::uint64_t from, std::uint64_t to, FileContent& source, std::int64_t behind,
                Duration now);
  /// It turned out to be of less, or of nothing.
  void shorten(Id copy, std::uint64_t to);
  void end(Id write, Duration now);
  /// It has taken effect by now, wholly, in parts, or not at all; no more will come of it.
  void settle(Id write, Duration now);
  void power_loss();
  /// The mount of `by` is told of a loss, that need not be one: it must take for lost what it wrote
  /// here and has not synced, if any of that was answered at `since` or later or is under way.
  void suspect(Writer by, Duration since = Duration::min());
  /// A sync that began at `since` succeeded.
  void synced(Writer by, Duration since);
  /// Who was refused, and what for.
  struct Refused {
    Writer by = nullptr;
    std::uint64_t handle = 0;  ///< 0: a durable write, which tells of itself.
    Duration since{};          ///< When the handle was opened, or the write began.
    Duration now{};
  };
  /// False: its mount was told of no loss (suspect) that it had anything unsynced here at, or it
  /// has been told itself, or was opened when somebody of its mount had been.
  bool told_of_loss(const Refused& who);
  /// A sync or a durable write failed by itself: perhaps that was the word of a loss, perhaps there
  /// is one to come.
  void failed(Writer by);
  /// A read is under way; what it may show is kept until it is over.
  void begin_read(Duration now) { reads_.insert(now); }
  void end_read(Duration began) { reads_.erase(reads_.find(began)); }
  /// A read that began at `since` found the end there. What is behind it is nothing: a write whose
  /// end nobody heard, and of which nothing more could come by then, does not show there any more,
  /// however long the file becomes.
  void ends_at(std::uint64_t size, Duration since);
  /// What is wrong with what a read that began at `since` and ends `now` got, if anything.
  std::optional<std::string> judge(std::uint64_t offset, std::span<const std::byte> got,
                                   Duration since, Duration now);
  /// The same of zeros all over [from, to), which is what a hole says.
  [[nodiscard]] std::optional<std::string> judge_hole(std::uint64_t from, std::uint64_t to,
                                                      Duration since, Duration now) const;

 private:
  /// Content that a copy may have: bytes of write `stamp` that it has `behind` bytes earlier.
  struct Part {
    std::uint64_t from = 0, to = 0;
    Stamp stamp = 0;
    std::int64_t behind = 0;
    auto operator<=>(const Part&) const = default;
  };
  using What = std::pair<Stamp, std::int64_t>;
  struct Write {
    std::uint64_t from = 0, to = 0;
    Stamp stamp = 0;
    std::int64_t behind = 0;
    bool copy = false;
    std::set<Part> parts = {};  ///< Of a copy, in the place of `stamp`.
    Duration began{}, ended = Duration::max();
    bool certain = true;  ///< That it took effect, once it has ended.
    Writer by = nullptr;
    bool durable = false;   ///< Will be, when it has ended.
    bool flushed = false;   ///< A power loss changes nothing any more.
    bool answered = false;  ///< With success.
    bool doubtful = false;  ///< Power was lost, and a sync has yet to say what became of it.
    bool mapped = false;
  };
  /// A copy that is under way, of this file's content.
  struct Follower {
    FileContent* into = nullptr;
    Id id = 0;
    std::uint64_t from = 0, to = 0;  ///< Here.
    std::int64_t behind = 0;
    Duration began{};
  };
  bool unclaim(Writer by);
  void prune();
  [[nodiscard]] static std::vector<Part> parts_of(const Write& write);
  [[nodiscard]] std::set<What> possible(std::uint64_t from, std::uint64_t to, Duration since,
                                        const std::vector<const Write*>& over) const;
  [[nodiscard]] std::vector<const Write*> over(std::uint64_t from, std::uint64_t to,
                                               Duration until) const;
  /// Where what may show in [from, to) changes, with both ends.
  [[nodiscard]] std::set<std::uint64_t> cuts_in(std::uint64_t from, std::uint64_t to) const;
  void tell(const Part& part);
  void tell_all(const Follower& follower, Duration until);
  void add_part(Id copy, Part part);
  std::map<Id, Write> writes_;
  /// Who has written without a sync since, and when last. More than what `writes_` knows: what is
  /// wholly written over is forgotten there, and its writer's mount is still owed a word of a loss.
  std::map<Writer, Duration> unsynced_;
  std::set<Writer> sorry_;  ///< Of these, at a loss.
  /// What a mount was told of its last loss here.
  struct Told {
    std::set<std::uint64_t> handles;
    std::optional<Duration> first;
  };
  std::map<Writer, Told> told_;
  std::multiset<Duration> reads_;
  std::vector<Follower> followers_;
  Id next_ = 1;
  std::size_t prune_at_ = 64;
};

/// A file to which records are only appended, by anybody.
class LogContent {
 public:
  /// Bytes of a record: they say whose it is and where it ends.
  static std::vector<std::byte> record(Stamp stamp, std::size_t length);
  static constexpr std::size_t kLeast = 24;

  void begin(Stamp stamp, Duration now);
  void end(Stamp stamp, Duration now);
  /// Every record that was answered before `since` is there, whole, once, and in an order that
  /// could be; none that was not begun.
  std::optional<std::string> judge(std::span<const std::byte> all, Duration since);

 private:
  struct Record {
    Duration began{}, ended = Duration::max();
    std::uint64_t found_in = 0;  ///< The last look that found it.
  };
  std::map<Stamp, Record> records_;
  // What the last look found to be whole records: most begin with the same bytes.
  std::vector<std::byte> known_;
  std::vector<std::pair<Stamp, Record*>> order_;
  std::uint64_t looks_ = 0;
};

}  // namespace csv::sim
