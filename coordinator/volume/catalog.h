#pragma once
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/volume/volume.h"
#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/ids.h"

namespace csv::volume {

/// An inode's attributes. Times are ns since 1970.
struct Attr {
  InodeId inode{};
  std::uint32_t mode = 0;  ///< With the type bits.
  std::uint32_t uid = 0, gid = 0;
  std::uint32_t nlink = 0;
  std::uint64_t rdev = 0;
  std::uint64_t size =
      0;  ///< Bytes; of a directory: number of entries; of a symlink: its target's length.
  std::uint64_t blocks = 0;  ///< Blocks of kBlockSize that the file holds.
  std::int64_t atime = 0, mtime = 0, ctime = 0, btime = 0;
  std::uint64_t truncation = 0;  ///< Grows whenever the file shrinks (A11).
  InodeId parent{};              ///< Of a directory: the one above. Of a file: its home (A17).
  bool has_xattrs = false;       ///< As it was looked up; not kept up by what changes them.
};

struct AttrChange {
  std::optional<std::uint32_t> mode, uid, gid;  ///< mode: permission bits only.
  std::optional<std::int64_t> atime, mtime;
};

struct Entry {
  std::string name;
  std::uint64_t cookie = 0;  ///< Position in its directory; never reused there. At least 3: the
                             ///< mount gives 1 and 2 to "." and "..".
  Attr attr;
};

enum class BlockState : std::uint8_t {
  hole = 0,       ///< No space: zeros.
  unwritten = 1,  ///< Space whose content is not the file's: zeros.
  written = 2,
  granted = 3,  ///< Unwritten, and given to a session that may be writing it now.
  shared = 4,   ///< Written, and other blocks of files name the same place: never written there.
};

/// A run of a file in one state and, except for a hole, one place. In blocks of kBlockSize.
struct Mapping {
  std::uint64_t file_block = 0;
  std::uint64_t count = 0;
  std::uint64_t lun_block = 0;  ///< From the start of the LUN. 0 for a hole.
  BlockState state = BlockState::hole;
  GrantId grant{};
};

/// A run of blocks on the LUN.
struct Run {
  std::uint64_t lun_block = 0;
  std::uint64_t count = 0;
  auto operator<=>(const Run&) const = default;
};

enum class AdmissionState : std::uint8_t { registering = 0, admitted = 1, fenced = 2 };

/// A process's permission to use the LUN, as a row (A1, A2).
struct AdmissionRow {
  Key key{};
  SessionId session{};
  NodeId node{};
  std::uint64_t incarnation = 0;
  AdmissionState state{};
};
struct SessionRow {
  SessionId id{};
  NodeId node{};
  std::uint64_t incarnation = 0;
  bool ended = false;  ///< Nothing it holds counts any more; what it held is being cleaned up.
};

/// What others did, since its session was ended, to a file that a mount had open. Bits.
enum class Touch : std::uint8_t {
  none = 0,
  content = 1,       ///< Wrote it, or opened it for writing; or nobody can tell.
  read_locked = 2,   ///< Took a lock that excludes writers.
  write_locked = 4,  ///< Took a lock that excludes everybody.
};
constexpr Touch operator|(Touch a, Touch b) {
  return Touch(static_cast<std::uint8_t>(a) | static_cast<std::uint8_t>(b));
}
constexpr Touch operator&(Touch a, Touch b) {
  return Touch(static_cast<std::uint8_t>(a) & static_cast<std::uint8_t>(b));
}

/// What a mount had open when its session was ended without a goodbye; or, while it lives, when
/// something first counted against it. One a node.
struct SuspendedRow {
  NodeId node{};
  SessionId session{};  ///< The one that was ended, or may be.
  std::uint64_t incarnation = 0;
  /// `files` are all it had open; else what it had is not known, and `files` are those that others
  /// have touched.
  bool listed = false;
  /// Of an inode from here on it cannot have known.
  InodeId next_inode{std::numeric_limits<std::int64_t>::max()};
  std::map<InodeId, Touch> files;
};

struct SlotResult {
  std::uint64_t sequence = 0;
  std::string reply;
};

/// A volume's metadata database. All of it belongs to the volume's writer thread; nothing here
/// knows of networks, leases or clocks (times come in as arguments).
///
/// Everything between run() and its return is one transaction. The operations are called by the
/// bodies of changes only. An operation that refuses (ENOENT, EEXIST, ENOSPC, ...) has changed
/// nothing. Bad names (empty, "." and "..", '/' or NUL inside, over 255 bytes) are EINVAL or
/// ENAMETOOLONG. Inodes that do not exist: ESTALE.
class Catalog {
 public:
  virtual ~Catalog() = default;

  /// Makes the tables of an empty volume (with the root directory) in `store`.
  static Expected<void> create(CatalogStore& store, std::int64_t now);
  /// Opens what `store` holds: the log is recovered, interrupted growth finished. Reads a few
  /// pages, whatever the size of the volume. Errc::refused for a newer schema.
  static Expected<std::unique_ptr<Catalog>> open(CatalogStore& store);

  /// One request's part of a group commit.
  struct Change {
    Function<Expected<void>(Catalog&)> body;
    bool read_only = false;
    Expected<void> result;  ///< After run(): what body said. Valid only if run() succeeded.
  };
  /// Runs the bodies in order, each in its savepoint (undone alone if it refuses), in transactions
  /// of bounded size (C1), and returns once all is durable. If a statement destroys the transaction
  /// (A12), the group is run again one by one: bodies must be repeatable. An error from run()
  /// itself means the outcome is unknown: answer nobody and give the volume up.
  virtual Expected<void> run(std::span<Change> changes) = 0;
  /// Work between groups: checkpoint when the log is long, growth of the database (C4), one step of
  /// freeing (orphans without openers are freed by reap()). Errors as run().
  virtual Expected<void> maintain() = 0;
  /// Everything in the log goes into the database. Destroying a catalog without this writes
  /// nothing. Errors as run().
  virtual Expected<void> checkpoint() = 0;
  /// The same, and the log is durably an empty one: whoever opens the catalog next has none to
  /// read. At the end, as the next change begins a log anew. Errors as run().
  virtual Expected<void> empty_log() = 0;

  // Names. `now` becomes the times that POSIX says change.
  virtual Expected<Attr> attr(InodeId inode) = 0;
  virtual Expected<Attr> lookup(InodeId parent, std::string_view name) = 0;  ///< "." and ".." too.
  virtual Expected<std::vector<Entry>> list(InodeId directory, std::uint64_t after_cookie,
                                            std::size_t limit) = 0;
  struct NewInode {
    std::uint32_t mode = 0;
    std::uint32_t uid = 0, gid = 0;  ///< gid and S_ISGID as a set-group-id parent says.
    std::uint64_t rdev = 0;
    std::string target = {};  ///< Of a symbolic link: 1 to 4095 bytes.
    /// Taken from mode, unless the parent has a default ACL: then that decides, and is inherited.
    std::uint32_t umask = 0;
  };
  virtual Expected<Attr> make(InodeId parent, std::string_view name, const NewInode& what,
                              std::int64_t now) = 0;
  /// A regular file without a name, otherwise as if made in `parent`: an orphan, to which link()
  /// may give a name.
  virtual Expected<Attr> make_nameless(InodeId parent, const NewInode& what, std::int64_t now) = 0;
  virtual Expected<Attr> link(InodeId inode, InodeId parent, std::string_view name,
                              std::int64_t now) = 0;
  /// Removes a name. An inode that lost its last one becomes an orphan: it stays, with its data,
  /// until reap(). Returns its attributes afterwards (nlink 0: orphaned).
  virtual Expected<Attr> unlink(InodeId parent, std::string_view name, std::int64_t now) = 0;
  virtual Expected<Attr> rmdir(InodeId parent, std::string_view name, std::int64_t now) = 0;
  /// flags: RENAME_NOREPLACE, RENAME_EXCHANGE of <linux/fs.h>. Returns the inode that was replaced,
  /// if any (nlink 0: orphaned). A directory into itself: EINVAL.
  virtual Expected<std::optional<Attr>> rename(InodeId parent, std::string_view name,
                                               InodeId new_parent, std::string_view new_name,
                                               std::uint32_t flags, std::int64_t now) = 0;
  /// A mode also changes the access ACL, if there is one. A new owner or group of what is no
  /// directory takes privileges away, as drop_privileges() does.
  virtual Expected<Attr> change(InodeId inode, const AttrChange& to, std::int64_t now) = 0;
  /// What a changed content must not keep: `security.capability`, and if `set_id` the set-user-ID
  /// bit and, where the group may execute, the set-group-ID bit.
  virtual Expected<Attr> drop_privileges(InodeId inode, bool set_id, std::int64_t now) = 0;
  /// Whether drop_privileges() with `set_id` would change anything.
  virtual Expected<bool> has_privileges(InodeId inode) = 0;
  /// atime becomes `now`, if that is later; nothing else changes.
  virtual Expected<Attr> accessed(InodeId inode, std::int64_t now) = 0;
  /// mtime and ctime become `now`, or the ctime the inode has if that is later (a clock that steps
  /// back): only a program can set mtime back.
  virtual Expected<Attr> touch(InodeId inode, std::int64_t now) = 0;
  virtual Expected<std::string> read_link(InodeId inode) = 0;

  virtual Expected<std::string> xattr(InodeId inode, std::string_view name) = 0;  ///< ENODATA
  virtual Expected<std::string> list_xattrs(InodeId inode) = 0;  ///< Names, each ended by NUL.
  /// flags: XATTR_CREATE, XATTR_REPLACE. Value at most 64 KiB, name 255, all of an inode 256 KiB.
  /// An access ACL changes the permission bits too, and is not kept if these can say all of it; to
  /// remove an ACL that does not exist is no error.
  virtual Expected<void> set_xattr(InodeId inode, std::string_view name, std::string_view value,
                                   std::uint32_t flags, std::int64_t now) = 0;
  virtual Expected<void> remove_xattr(InodeId inode, std::string_view name, std::int64_t now) = 0;

  // Space. File offsets and sizes are below 16 TiB, else EFBIG.
  /// The state of [first, first + count), complete and in order, joined where it can be.
  virtual Expected<std::vector<Mapping>> map(InodeId inode, std::uint64_t first,
                                             std::uint64_t count) = 0;
  /// Blocks in memory only, for a write that is made before its transaction: nobody else gets them;
  /// forgotten by cancel_reservation() or when the process ends. Near `goal` (a LUN block, 0: where
  /// the inode's last extent or folder is), in at most `most_runs` runs. ENOSPC.
  virtual Expected<std::vector<Run>> reserve_space(InodeId inode, std::uint64_t count,
                                                   std::uint64_t goal, std::size_t most_runs) = 0;
  virtual void cancel_reservation(std::span<const Run> runs) = 0;
  /// Puts reserved blocks under [file_block, …) of the inode as `state` (unwritten, written, or
  /// granted with a grant). What stood there before must be holes.
  virtual Expected<void> place(InodeId inode, std::uint64_t file_block, std::span<const Run> runs,
                               BlockState state, GrantId grant) = 0;
  /// How far an operation came whose work may be too large for one transaction.
  struct Progress {
    Attr attr;
    std::uint64_t done =
        0;  ///< Blocks from `first` on. Less than `count`: go on there, in another change.
  };
  /// Gives the holes of [first, first + count) unwritten space, from the front. ENOSPC if all of
  /// its holes together do not fit, and then nothing has changed.
  virtual Expected<Progress> fill(InodeId inode, std::uint64_t first, std::uint64_t count) = 0;
  /// Unwritten becomes written. Granted, hole or shared in the range is our own mistake.
  virtual Expected<void> mark_written(InodeId inode, std::uint64_t first, std::uint64_t count) = 0;
  /// Of a session's grant: these blocks have been written. stale_commit if the grant is another's,
  /// the inode's truncation counter is not `truncation` or any block is not of this grant any more
  /// (A11): who has not written them must not make their old content the file's. Already written is
  /// not a reason, but a row that is wholly written has left its grant.
  virtual Expected<void> commit_grant(SessionId session, InodeId inode, GrantId grant,
                                      std::uint64_t first, std::uint64_t count,
                                      std::uint64_t truncation) = 0;
  /// What is left of a session's grants on an inode (all inodes: InodeId{}) becomes dying space
  /// again, in windows of 8 MiB until `limit` blocks are freed, or as much other work is done; the
  /// number freed, but at least `limit` if something may be left.
  virtual Expected<std::uint64_t> drop_grants(SessionId session, InodeId inode,
                                              std::uint64_t limit) = 0;
  virtual Expected<GrantId> new_grant(SessionId session, InodeId inode) = 0;
  /// Size becomes at least `size` (a write beyond the end). What the last block holds behind the
  /// former end is the caller's business, here and in truncate().
  virtual Expected<Attr> grow(InodeId inode, std::uint64_t size, std::int64_t now) = 0;
  /// Size becomes exactly this. Shrinking: blocks beyond are freed in steps (maintain), the
  /// truncation counter grows; the last block stays as it is. Growing: a hole.
  virtual Expected<Attr> truncate(InodeId inode, std::uint64_t size, std::int64_t now) = 0;
  /// [first, first + count) becomes a hole (freed; always all of it at once) or unwritten (kept:
  /// what is a hole stays one, what is shared becomes one; grants on it end).
  virtual Expected<Progress> punch(InodeId inode, std::uint64_t first, std::uint64_t count,
                                   bool keep_space, std::int64_t now) = 0;
  /// Space beyond the end that a growing file was given and did not use is freed, unless asked for
  /// by fallocate (kept_beyond_end).
  virtual Expected<void> trim(InodeId inode) = 0;
  virtual Expected<void> keep_beyond_end(InodeId inode) = 0;
  /// An orphan that nobody has open: its space starts dying, its rows go, in steps (maintain).
  virtual Expected<void> reap(InodeId inode) = 0;
  virtual Expected<std::vector<InodeId>> orphans(InodeId after, std::size_t limit) = 0;
  /// What is written in [first, first + count) of `from` becomes, in the same place on the LUN, the
  /// content of [at, at + count) of `into`, the rest of that range holes (A16). From the front, at
  /// most 1 GiB and what one transaction may hold: Progress::done, at least a block. Progress::attr
  /// is that of `into`, whose size is the caller's business. Nobody holds layouts to write of the
  /// one range, or any of the other, and nothing of either carries a grant, else refused: blocks
  /// that a session may still write would be seen in both. Ranges of one inode that overlap:
  /// EINVAL.
  virtual Expected<Progress> clone(InodeId from, std::uint64_t first, std::uint64_t count,
                                   InodeId into, std::uint64_t at) = 0;
  /// Reserved blocks, which hold the content already and durably, take the place of those under
  /// [file_block, ...) of the inode, which are all written. What nobody names any more is dying.
  virtual Expected<void> replace(InodeId inode, std::uint64_t file_block,
                                 std::span<const Run> runs) = 0;
  /// lseek: the first offset at or after `offset` that is data (hole), ENXIO where there is none.
  virtual Expected<std::uint64_t> seek(InodeId inode, std::uint64_t offset, bool data) = 0;

  // The life of a freed block (A15): used, dying, clean, free.
  /// Runs whose layouts are all gone, to be unmapped; oldest first.
  virtual Expected<std::vector<Run>> dying(std::size_t limit) = 0;
  /// The UNMAP of these (of dying()) has been answered: they are free.
  virtual Expected<void> make_free(std::span<const Run> runs) = 0;

  struct Space {
    std::uint64_t total = 0, free = 0;  ///< Blocks; free: what can be given out, dying included.
    std::uint64_t inodes = 0;
    std::uint64_t dying = 0;  ///< Of `free`: not given out before make_free().
    bool freeing = false;     ///< maintain() can free more in steps: more will be dying.
  };
  /// After ENOSPC: with `dying` or `freeing` it is worth freeing first and trying again.
  virtual Expected<Space> space() = 0;

  // Sessions and admissions.
  virtual Expected<SessionRow> new_session(NodeId node, std::uint64_t incarnation) = 0;
  virtual Expected<std::vector<SessionRow>> sessions() = 0;  ///< Ended ones too, until forgotten.
  virtual Expected<void> end_session(SessionId session) = 0;
  /// Its grants are dropped: rows and slots go.
  virtual Expected<void> forget_session(SessionId session) = 0;
  /// A fresh number for a key; never given out twice.
  virtual Expected<std::uint64_t> new_key_number() = 0;
  virtual Expected<void> put_admission(const AdmissionRow& row) = 0;
  virtual Expected<void> remove_admission(Key key) = 0;
  virtual Expected<std::vector<AdmissionRow>> admissions() = 0;
  /// Replaces what was suspended of the node. row.next_inode falls to
  /// the next that will be made.
  virtual Expected<void> suspend(SuspendedRow& row) = 0;
  /// Adds to what is known of these files of a node; no effect if nothing of it is suspended.
  virtual Expected<void> touch_suspended(NodeId node, const std::map<InodeId, Touch>& files) = 0;
  virtual Expected<void> forget_suspended(NodeId node) = 0;
  virtual Expected<std::vector<SuspendedRow>> suspended() = 0;
  /// What is known of the target's memory. A key that it forgot, or a generation that went back,
  /// tells of a power loss, which took what was in its volatile cache along.
  struct TargetMemory {
    std::uint64_t losses = 0;
    std::uint32_t key_generation = 0;  ///< PRGENERATION when last looked at.
  };
  [[nodiscard]] virtual TargetMemory target_memory() const = 0;
  virtual Expected<void> set_target_memory(TargetMemory now) = 0;
  virtual Expected<std::optional<SlotResult>> slot(SessionId session, std::uint32_t slot) = 0;
  virtual Expected<void> put_slot(SessionId session, std::uint32_t slot,
                                  const SlotResult& result) = 0;

  /// Inodes whose attributes or, of directories, names may have changed since the last call (by
  /// run() or maintain(), or by what was undone again), in order. From open() on they are gathered
  /// for somebody who asks after each run.
  struct Changed {
    std::vector<InodeId> inodes;
    std::vector<InodeId> access_times;  ///< Of these nothing else.
    std::vector<Attr> now;              ///< Of some of `inodes`, if who asked has looked.
    [[nodiscard]] bool empty() const { return inodes.empty() && access_times.empty(); }
  };
  virtual Changed take_changed() = 0;

  struct Statistics {
    std::uint64_t transactions = 0, changes = 0, checkpoints = 0, wal_bytes = 0;
  };
  [[nodiscard]] virtual Statistics statistics() const = 0;
};

}  // namespace csv::volume
