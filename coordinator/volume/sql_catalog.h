#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/volume/allocator.h"
#include "coordinator/volume/bitmap.h"
#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/database.h"

namespace csv::volume {

/// The newest schema, of a catalog in which files share blocks or are suspended; from the first of
/// either on, so that a program that would free such blocks, or not note who touches such files,
/// refuses the volume. Until then it is kSchemaPlain.
inline constexpr std::uint64_t kSchemaVersion = 4;
inline constexpr std::uint64_t kSchemaPlain = 3;
constexpr bool is_known_schema(std::uint64_t version) {
  return version == kSchemaVersion || version == kSchemaPlain;
}
inline constexpr std::uint64_t kMaxFileBlocks = 1ull << 32;  ///< 16 TiB.
/// An extent row lies within one window of its file, so that a window's rows are found by its start
/// and every change works on few rows.
inline constexpr std::uint64_t kWindowBlocks = (8ull << 20) / kBlockSize;
using Written = Bitmap<kWindowBlocks>;

/// An extent row.
struct Extent {
  std::uint64_t file_block = 0, count = 0, lun_block = 0;
  GrantId grant{};
  std::uint64_t birth = 0;
  Written written;  ///< Bits beyond count are clear.
  [[nodiscard]] std::uint64_t end() const { return file_block + count; }
  [[nodiscard]] std::uint64_t unwritten() const { return count - written.count(0, count); }
  bool operator==(const Extent&) const = default;
};

/// Cuts `extent` to [first, end), which must overlap it.
Extent cut(const Extent& extent, std::uint64_t first, std::uint64_t end);
/// How an extent's bitmap lies in its row: nothing if all or none is written.
std::optional<std::string> encode_written(const Extent& extent);
/// Its columns file_block, count, lun_block, grant_id, birth, written_count, written, from `column`
/// on.
Extent read_extent(const Query& query, int column);

/// A span of a file's blocks whose rows are to be freed and count as holes already.
struct FreeingSpan {
  std::uint64_t first = 0, until = 0;
};

/// A row of `shared`: every block of it is named by `count` blocks of files.
struct SharedRange {
  std::uint64_t start = 0, length = 0, count = 0;
  [[nodiscard]] std::uint64_t end() const { return start + length; }
  bool operator==(const SharedRange&) const = default;
};

/// An inode row.
struct Inode {
  Attr attr;
  std::uint64_t next_cookie = 0;  ///< Of a directory.
  bool keep_beyond_end = false;
};

/// The Catalog over SQLite; docs/catalog.md describes its tables.
class SqlCatalog final : public Catalog, public CopySpace {
 public:
  SqlCatalog(CatalogStore& store, std::unique_ptr<Database> database);
  ~SqlCatalog() override;
  /// Reads what open() needs; finishes an interrupted growth.
  Expected<void> load();
  /// The rows of an empty volume, in a transaction of the caller's.
  Expected<void> fill_empty(std::int64_t now);

  // catalog_run.cc
  Expected<void> run(std::span<Change> changes) override;
  Expected<void> maintain() override;
  Expected<void> checkpoint() override;
  Expected<void> empty_log() override;
  Changed take_changed() override;
  Statistics statistics() const override;

  // catalog_names.cc
  Expected<Attr> attr(InodeId inode) override;
  Expected<Attr> lookup(InodeId parent, std::string_view name) override;
  Expected<std::vector<Entry>> list(InodeId directory, std::uint64_t after_cookie,
                                    std::size_t limit) override;
  Expected<Attr> make(InodeId parent, std::string_view name, const NewInode& what,
                      std::int64_t now) override;
  Expected<Attr> make_nameless(InodeId parent, const NewInode& what, std::int64_t now) override;
  Expected<Attr> link(InodeId inode, InodeId parent, std::string_view name,
                      std::int64_t now) override;
  Expected<Attr> unlink(InodeId parent, std::string_view name, std::int64_t now) override;
  Expected<Attr> rmdir(InodeId parent, std::string_view name, std::int64_t now) override;
  Expected<std::optional<Attr>> rename(InodeId parent, std::string_view name, InodeId new_parent,
                                       std::string_view new_name, std::uint32_t flags,
                                       std::int64_t now) override;
  Expected<Attr> change(InodeId inode, const AttrChange& to, std::int64_t now) override;
  Expected<Attr> touch(InodeId inode, std::int64_t now) override;
  Expected<Attr> accessed(InodeId inode, std::int64_t now) override;
  Expected<std::string> read_link(InodeId inode) override;
  Expected<void> reap(InodeId inode) override;
  Expected<std::vector<InodeId>> orphans(InodeId after, std::size_t limit) override;

  // catalog_xattrs.cc
  Expected<std::string> xattr(InodeId inode, std::string_view name) override;
  Expected<std::string> list_xattrs(InodeId inode) override;
  Expected<void> set_xattr(InodeId inode, std::string_view name, std::string_view value,
                           std::uint32_t flags, std::int64_t now) override;
  Expected<void> remove_xattr(InodeId inode, std::string_view name, std::int64_t now) override;
  Expected<Attr> drop_privileges(InodeId inode, bool set_id, std::int64_t now) override;
  Expected<bool> has_privileges(InodeId inode) override;

  // catalog_space.cc
  Expected<std::vector<Mapping>> map(InodeId inode, std::uint64_t first,
                                     std::uint64_t count) override;
  Expected<std::vector<Run>> reserve_space(InodeId inode, std::uint64_t count, std::uint64_t goal,
                                           std::size_t most_runs) override;
  void cancel_reservation(std::span<const Run> runs) override;
  Expected<void> place(InodeId inode, std::uint64_t file_block, std::span<const Run> runs,
                       BlockState state, GrantId grant) override;
  Expected<Progress> fill(InodeId inode, std::uint64_t first, std::uint64_t count) override;
  Expected<void> mark_written(InodeId inode, std::uint64_t first, std::uint64_t count) override;
  Expected<Attr> grow(InodeId inode, std::uint64_t size, std::int64_t now) override;
  Expected<Attr> truncate(InodeId inode, std::uint64_t size, std::int64_t now) override;
  Expected<Progress> punch(InodeId inode, std::uint64_t first, std::uint64_t count, bool keep_space,
                           std::int64_t now) override;
  Expected<void> trim(InodeId inode) override;
  Expected<void> keep_beyond_end(InodeId inode) override;
  Expected<std::uint64_t> seek(InodeId inode, std::uint64_t offset, bool data) override;
  Expected<std::vector<Run>> dying(std::size_t limit) override;
  Expected<void> make_free(std::span<const Run> runs) override;
  Expected<Space> space() override;

  // catalog_shared.cc
  Expected<Progress> clone(InodeId from, std::uint64_t first, std::uint64_t count, InodeId into,
                           std::uint64_t at) override;
  Expected<void> replace(InodeId inode, std::uint64_t file_block,
                         std::span<const Run> runs) override;

  // catalog_grants.cc
  Expected<void> commit_grant(SessionId session, InodeId inode, GrantId grant, std::uint64_t first,
                              std::uint64_t count, std::uint64_t truncation) override;
  Expected<std::uint64_t> drop_grants(SessionId session, InodeId inode,
                                      std::uint64_t limit) override;
  Expected<GrantId> new_grant(SessionId session, InodeId inode) override;

  // catalog_copies.cc
  Expected<std::vector<std::uint64_t>> copy_places(std::uint32_t slot,
                                                   std::uint64_t pages) override;
  Expected<std::uint64_t> pages() override;

  // catalog_sessions.cc
  Expected<SessionRow> new_session(NodeId node, std::uint64_t incarnation) override;
  Expected<std::vector<SessionRow>> sessions() override;
  Expected<void> end_session(SessionId session) override;
  Expected<void> forget_session(SessionId session) override;
  Expected<void> suspend(SuspendedRow& row) override;
  Expected<void> touch_suspended(NodeId node, const std::map<InodeId, Touch>& files) override;
  Expected<void> forget_suspended(NodeId node) override;
  Expected<std::vector<SuspendedRow>> suspended() override;
  [[nodiscard]] TargetMemory target_memory() const override;
  Expected<void> set_target_memory(TargetMemory now) override;
  Expected<std::uint64_t> new_key_number() override;
  Expected<void> put_admission(const AdmissionRow& row) override;
  Expected<void> remove_admission(Key key) override;
  Expected<std::vector<AdmissionRow>> admissions() override;
  Expected<std::optional<SlotResult>> slot(SessionId session, std::uint32_t slot) override;
  Expected<void> put_slot(SessionId session, std::uint32_t slot, const SlotResult& result) override;

 private:
  /// What an operation does to the database's pages (C4). `perhaps`: what is in no way to free, nor
  /// must go on (as sessions, their results and their ends must).
  enum class Pages { needed, perhaps, freed };
  /// Every changing operation begins with this: refused outside of a change or in a read-only one;
  /// ENOSPC for `needed` while the database must keep its last pages for operations that free, and
  /// for `perhaps` while half of those are gone.
  Expected<void> may_change(Pages pages) const;

  // --- Inodes (catalog_names.cc)
  Expected<Inode> load_inode(InodeId inode);
  Expected<Inode> load_directory(InodeId inode);
  Expected<Inode> load_file(InodeId inode);  ///< A regular file; EISDIR, EINVAL.
  Expected<void> store_inode(const Inode& inode);
  struct EntryRow {
    InodeId inode{};
    std::uint64_t cookie = 0;
  };
  Expected<std::optional<EntryRow>> find_entry(InodeId parent, std::string_view name);
  Expected<bool> is_within(InodeId inode, InodeId ancestor);
  Expected<void> add_link(Inode& inode, InodeId parent);
  Expected<void> drop_link(Inode& inode, InodeId parent);
  Expected<void> move_link(Inode& inode, InodeId from, InodeId to);
  Expected<void> count_link(InodeId inode, InodeId parent, bool more);
  Expected<Attr> remove(InodeId parent, std::string_view name, bool directory, std::int64_t now);
  /// An inode, but neither its name nor what is counted above. Changes nothing of `above`.
  Expected<Attr> insert_inode(const Inode& above, const NewInode& what, std::uint32_t nlink,
                              std::int64_t now);

  // --- Access control (catalog_xattrs.cc)
  /// Which permission bits a new inode gets from the parent's default ACL or the umask, and what
  /// it inherits.
  struct Inherited {
    std::uint32_t mode = 0;
    std::string access, defaults;  ///< Empty: none.
  };
  Expected<Inherited> inherit(InodeId parent, const NewInode& what);
  Expected<std::optional<std::string>> find_xattr(InodeId inode, std::string_view name);
  /// True: the ACL only says what the mode of `inode`, which is changed, now says as well.
  Expected<bool> apply_acl(Inode& inode, std::string_view name, std::string_view value);
  Expected<void> apply_mode_to_acl(InodeId inode, std::uint32_t mode);
  Expected<bool> drop_privileges_of(Inode& inode, bool set_id);

  // --- Extents (catalog_extents.cc)
  /// The rows of one window of a file, to be changed and stored.
  struct Window {
    InodeId inode{};
    std::uint64_t start = 0;
    std::vector<Extent> before, rows;
    /// No row crosses `at` afterwards.
    void split(std::uint64_t at);
  };
  /// By grant: how many of its unwritten blocks came (went).
  using GrantChanges = std::map<GrantId, std::int64_t>;
  Expected<Window> load_window(InodeId inode, std::uint64_t start);
  /// Joins what can be joined and writes the difference.
  Expected<void> store_window(Window& window);
  /// What is left of a grant changes; a grant with nothing unwritten ends. After all windows are
  /// stored.
  Expected<void> settle_grants(const GrantChanges& changes);
  /// Rows overlapping [first, end), cut to it, without what is being freed.
  Expected<std::vector<Extent>> extents_in(InodeId inode, std::uint64_t first, std::uint64_t end);
  Expected<std::vector<FreeingSpan>> freeing_in(InodeId inode, std::uint64_t first,
                                                std::uint64_t end);
  /// The rows in [first, end) are gone and their space dying: at once if that is little work, else
  /// in steps (maintain).
  Expected<void> free_blocks(InodeId inode, std::uint64_t first, std::uint64_t end);
  /// The same for as much as the budget (windows, rows, ranges of `shared`) allows; where it
  /// stopped.
  Expected<std::uint64_t> free_some(InodeId inode, std::uint64_t first, std::uint64_t end,
                                    std::uint64_t& budget);
  Expected<void> add_freeing(InodeId inode, FreeingSpan span);
  static Expected<void> check_freeing(InodeId inode, FreeingSpan span);
  Expected<void> forget_freeing(InodeId inode, FreeingSpan span);
  /// Nothing in the windows of [first, end) is left to be freed: needed before they are changed.
  Expected<void> finish_freeing(InodeId inode, std::uint64_t first, std::uint64_t end);
  Expected<void> step_freeing();
  Expected<void> add_dying(std::span<const Run> runs);
  /// Extents that named these have gone: what nobody names any more is dying. The one way there.
  /// How many ranges of `shared` it met, each a few rows of work.
  Expected<std::uint64_t> drop_names(std::span<const Run> runs);
  Expected<bool> hole_splits_rows(InodeId inode, std::uint64_t first, std::uint64_t end);
  Expected<void> add_blocks(InodeId inode, std::int64_t blocks);
  Expected<std::uint64_t> goal_of(InodeId inode, std::uint64_t file_block);
  Expected<InodeId> folder_of(InodeId inode);
  Expected<void> place_at(InodeId inode, std::uint64_t file_block, std::span<const Run> runs,
                          BlockState state, GrantId grant);

  // --- Shared blocks (catalog_shared.cc)
  struct Source {
    std::uint64_t file_block = 0;
    Run run;
  };
  [[nodiscard]] bool any_shared() const { return counters_.schema == kSchemaVersion; }
  /// What is shared of [first, end) on the LUN, cut to it.
  Expected<std::vector<SharedRange>> shared_in(std::uint64_t first, std::uint64_t end);
  /// One name more, or less, of a run; what has no name then is added to `unnamed`. How many ranges
  /// of `shared` lay there.
  Expected<std::uint64_t> count_names(Run run, bool more, std::vector<Run>& unnamed);
  /// What a clone of [first, end) takes from the front with so many rows; `end` becomes how far.
  Expected<std::vector<Source>> sources(InodeId from, std::uint64_t first, std::uint64_t& end,
                                        std::uint64_t at, std::uint64_t budget);
  Expected<void> no_grants_in(InodeId inode, std::uint64_t first, std::uint64_t end);
  Expected<void> append_states(std::vector<Mapping>& mappings, const Extent& extent);

  /// Blocks of [first, end) that have space become written; what that takes from grants is added
  /// up.
  Expected<void> set_written(InodeId inode, std::uint64_t first, std::uint64_t end,
                             GrantChanges* grants);
  Expected<std::uint64_t> holes_in(InodeId inode, std::uint64_t first, std::uint64_t end);
  Expected<std::uint64_t> drop_grant(GrantId grant, std::uint64_t& budget);
  void remember_end(InodeId folder, const Run& last);
  Expected<void> live_session(SessionId session);

  // --- Running (catalog_run.cc)
  Expected<void> run_all(std::span<Change> changes);
  /// One transaction of changes[next, …); `next` moves behind them. False: a statement destroyed
  /// it, `next` is the change that did, and nothing of it has happened.
  Expected<bool> run_some(std::span<Change> changes, std::size_t& next);
  Expected<void> run_alone(Change& change);
  Expected<void> run_body(Change& change);
  Expected<void> in_own_transaction(Function<Expected<void>()> body);
  Expected<void> begin();
  Expected<void> commit();
  Expected<void> give_up_transaction();
  void undo_totals(const Counters& to);
  Expected<void> store_counters();
  [[nodiscard]] std::uint64_t dirty_pages() const;  ///< Of the transaction, at most.
  Expected<void> healthy() const;
  Expected<void> once(Expected<void> result);  ///< The first error is the last thing we do.

  // --- The database's own space (catalog_growth.cc)
  Expected<std::uint64_t> free_pages();
  Expected<void> make_room();
  Expected<bool> grow_database();
  Expected<void> use_mapped_pages();
  Expected<void> finish_growth();
  Expected<void> add_later_tables();  ///< To a catalog that an earlier program made.
  Expected<void> finish_area();       ///< The volume has grown: its new blocks are free.

  CatalogStore& store_;
  std::unique_ptr<Database> database_;            // before the statements, which must go first
  const std::uint64_t area_first_, area_blocks_;  ///< The data area, in blocks of the LUN.
  const std::uint64_t log_size_;
  /// Extent rows and windows that one step changes: each with its index and dying rows a page or
  /// two, and far fewer where they lie together.
  const std::uint64_t work_in_step_;
  const std::uint64_t
      most_dirty_pages_;  ///< A transaction ends after the change that came this far.
  std::uint32_t groups_until_growth_ = 0;  ///< Of changes, after a thin LUN had no space for it.
  Counters counters_, stored_, at_change_;
  Allocator allocator_;
  Statistics statistics_;

  bool in_change_ = false, read_only_ = false;
  bool pages_short_ = false;      ///< Operations that need pages are refused.
  bool pages_scarce_ = false;     ///< And those that may need some.
  bool freeing_put_off_ = false;  ///< For want of a page, until the next maintain().
  std::uint64_t changes_at_begin_ = 0, extra_cost_ = 0;
  Expected<void> failed_;  ///< After the first error of run(): nothing runs any more.

  std::map<InodeId, InodeId> folders_;        ///< Directory to its top-level folder; a hint.
  std::map<InodeId, std::uint64_t> cursors_;  ///< Folder to where its last new file ended.
  std::uint64_t birth_ = 1;                   ///< Snapshot counter that new extents are born with.

  struct Statements;
  std::unique_ptr<Statements> sql_;
};

}  // namespace csv::volume
