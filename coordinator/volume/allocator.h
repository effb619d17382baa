#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "coordinator/volume/bitmap.h"
#include "coordinator/volume/catalog.h"
#include "coordinator/volume/database.h"

namespace csv::volume {

inline constexpr std::uint64_t kGroupBlocks = kGroupSize / kBlockSize;

/// Numbers kept as rows, held in memory during a transaction and written before its commit.
struct Counters {
  std::uint64_t free = 0;  ///< Blocks that are neither used nor dying.
  std::uint64_t dying = 0;
  std::uint64_t inodes = 0;
  std::uint64_t next_inode = 2, next_session = 1, next_grant = 1, next_key = 1;
  std::uint64_t target_losses = 0, key_generation = 0;  ///< Catalog::TargetMemory
  std::uint64_t schema = 0;                             ///< The version of the catalog's tables.
  bool operator==(const Counters&) const = default;
};

/// Which blocks of the data area are in use: a bitmap for each allocation group, as rows, and
/// reservations, in memory only. A group without a row is free; `fresh` rows say which those are,
/// so neither formatting nor opening touches all groups.
///
/// Bitmaps that were read are cached, and a change is written to its row at once; so undoing
/// (savepoint or transaction) only has to forget the cached bitmaps that were changed.
class Allocator {
 public:
  /// Blocks [first_block, first_block + blocks) of the LUN.
  Allocator(Database& database, Counters& counters, std::uint64_t first_block,
            std::uint64_t blocks);
  /// The rows of an empty area.
  Expected<void> create();
  /// The area had `before` blocks when its rows were written: those behind it are free now.
  Expected<void> extend(std::uint64_t before);

  /// Free blocks, kept away from everybody else until cancel() or use(). `goal` is a LUN block, in
  /// the area or 0. With `partly`, as much as fits in `most_runs` runs (at least one block); else
  /// all or ENOSPC. Runs longest first where there is a choice, none joined to another.
  Expected<std::vector<Run>> reserve(std::uint64_t count, std::uint64_t goal, std::size_t most_runs,
                                     bool partly);
  void cancel(std::span<const Run> runs);
  [[nodiscard]] bool is_reserved(const Run& run) const;
  /// Free blocks that are not reserved.
  [[nodiscard]] std::uint64_t available() const;

  /// Free blocks become used. Refused if one of them is not free. Reservations of them end when the
  /// transaction commits.
  Expected<void> use(std::span<const Run> runs);
  /// Used blocks become free. Refused if one of them is not used.
  Expected<void> release(std::span<const Run> runs);
  /// A whole group nobody has anything of: the lowest-numbered, or ENOSPC.
  Expected<Run> whole_group();
  /// whole_group() gives another one from now on: the LUN cannot write all of this one. Its blocks
  /// stay free; forgotten with the object.
  void avoid(const Run& group) { avoided_.insert(group.lun_block); }

  /// A LUN block to start a folder's files at: folders are spread over the groups, but for some
  /// that are left whole for whole_group().
  [[nodiscard]] std::uint64_t start_of_folder(InodeId folder) const;
  [[nodiscard]] bool contains(const Run& run) const {
    return run.lun_block >= first_block_ && run.count <= blocks_ &&
           run.lun_block - first_block_ <= blocks_ - run.count;
  }

  // The life of a change and of its transaction.
  void begin_change();
  void undo_change();
  void committed();
  void undo_all();

 private:
  using GroupMap = Bitmap<kGroupBlocks>;
  struct Span {  // Within a group.
    std::uint64_t first = 0, count = 0;
  };

  [[nodiscard]] std::uint64_t groups() const { return (blocks_ + kGroupBlocks - 1) / kGroupBlocks; }
  [[nodiscard]] std::uint64_t size_of(std::uint64_t group) const {
    return std::min(kGroupBlocks, blocks_ - group * kGroupBlocks);
  }
  Expected<GroupMap*> bitmap(std::uint64_t group);
  Expected<GroupMap> busy(std::uint64_t group);  ///< Used or reserved.
  [[nodiscard]] bool has_reservations(std::uint64_t group) const;
  [[nodiscard]] bool is_avoided(std::uint64_t group) const {
    return avoided_.contains(first_block_ + group * kGroupBlocks);
  }
  Expected<void> mark(std::span<const Run> runs, bool used);
  Expected<void> store(std::uint64_t group, const GroupMap& bits);
  Expected<void> leave_fresh(std::uint64_t group);
  Expected<bool> is_fresh(std::uint64_t group);

  Expected<std::uint64_t> free_at(std::uint64_t at, std::uint64_t count);
  Expected<Span> fit(std::uint64_t group, std::uint64_t from, std::uint64_t count);
  Expected<std::vector<std::uint64_t>> candidates(std::uint64_t near, std::uint64_t count);
  void take(std::vector<Run>& runs, std::uint64_t at, std::uint64_t count);
  void add_reservation(const Run& run);

  Database& database_;
  Counters& counters_;
  const std::uint64_t first_block_, blocks_;

  std::map<std::uint64_t, GroupMap> cache_;
  std::set<std::uint64_t> changed_;  ///< Groups this transaction wrote.
  std::set<std::uint64_t> avoided_;  ///< By their first LUN block.
  std::map<std::uint64_t, std::uint64_t>
      reserved_;  ///< First to end, of the area; disjoint, not touching.
  std::uint64_t reserved_blocks_ = 0;
  bool in_change_ = false;
  std::vector<Run> made_, used_;  ///< By this transaction: reservations; uses of reserved blocks.
  std::size_t made_before_ = 0, used_before_ = 0;  ///< By the changes before this one.

  Statement select_{"SELECT bitmap FROM groups WHERE id=?1"};
  Statement update_{"UPDATE groups SET free=?2, longest_free=?3, bitmap=?4 WHERE id=?1"};
  Statement insert_{"INSERT INTO groups(id,free,longest_free,bitmap) VALUES(?1,?2,?3,?4)"};
  Statement fitting_{
      "SELECT id, longest_free FROM groups INDEXED BY groups_by_longest_free"
      " WHERE longest_free>=?1 ORDER BY longest_free, id"};
  Statement longest_{
      "SELECT id, longest_free FROM groups INDEXED BY groups_by_longest_free"
      " WHERE longest_free<?1 ORDER BY longest_free DESC, id"};
  Statement fresh_at_{"SELECT first, count FROM fresh WHERE first<=?1 ORDER BY first DESC LIMIT 1"};
  Statement fresh_after_{"SELECT first, count FROM fresh WHERE first>?1 ORDER BY first LIMIT 1"};
  Statement delete_fresh_{"DELETE FROM fresh WHERE first=?1"};
  Statement insert_fresh_{"INSERT INTO fresh(first,count) VALUES(?1,?2)"};
};

}  // namespace csv::volume
