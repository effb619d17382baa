#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/limits.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/function.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/lock_ranges.h"
#include "csvfs/base/random.h"
#include "csvfs/base/range_set.h"
#include "csvfs/base/status_board.h"
#include "csvfs/base/task.h"
#include "csvfs/interrupt.h"
#include "iscsi/open_lun.h"

namespace csv {

/// What a Mount stands on: in production FUSE's daemon gives it the real things, in a simulation
/// everything is virtual.
struct MountSurroundings {
  Loop* loop = nullptr;
  Random* random = nullptr;
  iscsi::LunOpener open_lun;                         ///< A fresh way to the volume's LUN.
  std::function<void(protocol::Connected)> connect;  ///< To whoever coordinates the volume now.
  /// Whom a node that does not coordinate it named instead; may be empty.
  std::function<void(NodeId, const std::string& endpoint)> elsewhere;
  /// The last connect() led to who coordinates it; may be empty.
  std::function<void()> found;
  /// The newest epoch of the volume that this node has heard of; may be empty.
  std::function<Epoch()> newest_epoch;
  /// The I/O gate (membership lease), by this node's csvd. A mount that the coordinator answers has
  /// it from there, too.
  std::function<TimePoint()> open_until;
  std::string volume;
  NodeId node{};
  /// How long handles wait for a new session, once theirs is known to have ended: as long as a
  /// coordinator waits for a mount that owes it an answer.
  Duration resume_within = std::chrono::seconds{30};
  /// A mount that was never let in is refused in the end only after it has been for this long: a
  /// coordinator that has been outdone, and whose configuration is out of date, may say so while
  /// its lease lasts.
  Duration refused_for = std::chrono::seconds{5};
  /// Different files open at once; beyond: ENFILE. More than a Hello can name would keep the node
  /// away from every later coordinator.
  std::size_t most_open = protocol::kMostOpenFiles;
  /// Bytes for what grows with the number of files that are touched: a quarter for names and
  /// attributes that are watched, half for layouts. What programs have open comes on top.
  std::uint64_t memory = 96ull << 20;
};

struct Caller {
  std::uint32_t uid = 0, gid = 0;
};

/// A node's mount of one volume: the file system as plain calls. Names and attributes come from the
/// coordinator; content goes straight to the LUN under layouts, or through the coordinator where
/// there can be none. Every folder is *concurrent*: nothing is cached but stable layouts.
///
/// All calls on the loop's thread. A call waits, through reconnects and changes of coordinator, for
/// as long as waiting can help; it answers an error only if the file system says so, or EIO when
/// the session under which a file was opened has ended (a fence) and the file has been touched by
/// other nodes since, or something of this one's may be missing; else open files go on with the
/// next session. Those that take an Interrupt answer EINTR once it is raised, unless they have
/// begun to take effect.
///
/// Destroy a Mount before the tasks that wait for it, without running the loop in between: nothing
/// touches their memory any more then.
class Mount {
 public:
  enum class Handle : std::uint64_t {};  ///< An open file or directory of a program.

  /// Starts connecting in the background; calls wait for it.
  static std::unique_ptr<Mount> start(MountSurroundings surroundings);
  virtual ~Mount() = default;  ///< Like a crash of the process: nothing is said to anybody.
  /// Until the first admission: the error that makes waiting hopeless (refused: the node is kept
  /// out, for refused_for by now; a foreign LUN), or success once the volume can be used.
  virtual Task<Expected<void>> ready() = 0;
  /// Good order: waits for what is in flight, returns everything, says goodbye.
  virtual Task<void> end() = 0;
  /// After end(): why it was not in good order; empty if it was.
  [[nodiscard]] virtual std::string farewell_trouble() const = 0;

  virtual Task<Expected<wire::Attr>> lookup(InodeId parent, std::string name) = 0;
  virtual Task<Expected<wire::Attr>> attr(InodeId inode) = 0;
  /// `through` an open file (ftruncate): only while the session lives under which it was opened.
  virtual Task<Expected<wire::Attr>> change(wire::SetAttr to, Interrupt* interrupt = nullptr,
                                            std::optional<Handle> through = {}) = 0;
  virtual Task<Expected<wire::Attr>> make(Caller caller, wire::Make what,
                                          Interrupt* interrupt = nullptr) = 0;
  virtual Task<Expected<wire::Attr>> link(InodeId inode, InodeId parent, std::string name,
                                          Interrupt* interrupt = nullptr) = 0;
  /// The attributes of what was removed, as they are now (nlink 0: nothing is left of it).
  virtual Task<Expected<wire::Attr>> unlink(InodeId parent, std::string name, bool directory,
                                            Interrupt* interrupt = nullptr) = 0;
  /// Of what was replaced, if anything (inode 0: nothing).
  virtual Task<Expected<wire::Attr>> rename(wire::Rename what, Interrupt* interrupt = nullptr) = 0;
  /// `accessed`, here and below: counts for the access time, by relatime.
  virtual Task<Expected<std::string>> read_link(InodeId inode, bool accessed = false) = 0;
  struct ListOptions {
    std::uint32_t limit = 1024;  ///< Entries.
    /// What they may take (protocol::room_of_entry), but for one; 0: whatever they take. An earlier
    /// coordinator does not look at it.
    std::uint32_t room = 0;
    bool accessed = false;
  };
  virtual Task<Expected<wire::Entries>> list(InodeId directory, std::uint64_t after_cookie,
                                             ListOptions options) = 0;
  virtual Task<Expected<std::string>> xattr(InodeId inode, std::string name) = 0;
  virtual Task<Expected<std::string>> list_xattrs(InodeId inode) = 0;
  virtual Task<Expected<void>> set_xattr(wire::SetXattr what, Interrupt* interrupt = nullptr) = 0;
  virtual Task<Expected<void>> remove_xattr(InodeId inode, std::string name,
                                            Interrupt* interrupt = nullptr) = 0;
  virtual Task<Expected<wire::FsStat>> statistics() = 0;

  struct Opened {
    Handle handle{};
    wire::Attr attr;
  };
  struct OpenOptions {
    bool truncate = false;
    bool drop_set_id = false;  ///< With truncate: by who may not keep the set-ID bits.
    bool accessed = false;     ///< Reads through the handle count for the access time.
    bool writes = false;       ///< Programs may write, or store into mappings, through the handle.
  };
  virtual Task<Expected<Opened>> open(InodeId inode, OpenOptions options,
                                      Interrupt* interrupt = nullptr) = 0;
  /// O_CREAT: makes the file and opens it. EEXIST if it exists. `what.nameless`: O_TMPFILE.
  virtual Task<Expected<Opened>> create(Caller caller, wire::Make what, OpenOptions options,
                                        Interrupt* interrupt = nullptr) = 0;
  /// Never fails. The coordinator is told before anything that this mount removes afterwards, so
  /// that an unlink frees the file; if there is nothing else to say of it some milliseconds later,
  /// of several at once.
  virtual Task<void> close(Handle handle) = 0;
  struct Content {
    Buffer buffer;           ///< Owns the bytes.
    std::size_t skip = 0;    ///< The content begins here (reads are widened to blocks).
    std::size_t length = 0;  ///< Short only at the end of the file.
  };
  virtual Task<Expected<Content>> read(Handle handle, std::uint64_t offset,
                                       std::uint32_t length) = 0;
  /// For the kernel's page cache: whole pages, which may stay there until they are dropped (see
  /// drop_pages_with). The answer must reach the kernel without a wait in between.
  virtual Task<Expected<Content>> read_pages(Handle handle, std::uint64_t offset,
                                             std::uint32_t length,
                                             Interrupt* interrupt = nullptr) = 0;
  /// Makes the kernel write what is dirty of these ranges of a file and forget them, and calls
  /// `done` on the loop. The writes come as requests in the meantime, and requests to read pages
  /// that are not answered before. `clean`: no program can have stored into them, so there are no
  /// writes to wait for.
  using DropPages = std::function<void(InodeId inode, std::vector<Range> ranges, bool clean,
                                       Function<void()> done)>;
  virtual void drop_pages_with(DropPages drop) = 0;
  struct WriteOptions {
    bool append = false;       ///< At the true end, whatever `offset` says.
    bool durable = false;      ///< O_SYNC, O_DSYNC: answered past the volatile cache.
    bool drop_set_id = false;  ///< By who may not keep the set-ID bits.
    /// Dirty pages of a shared mapping: they never make a file longer. What lies beyond its end is
    /// dropped, and counts as written.
    bool pages = false;
  };
  /// `data` must stay valid until the task ends. All of it is written, or an error.
  virtual Task<Expected<std::uint32_t>> write(Handle handle, std::uint64_t offset,
                                              std::span<const std::byte> data, WriteOptions options,
                                              Interrupt* interrupt = nullptr) = 0;
  /// Past the volatile cache; `content_only` (fdatasync): the times of the file may not be yet.
  virtual Task<Expected<void>> sync(Handle handle, bool content_only = false,
                                    Interrupt* interrupt = nullptr) = 0;
  virtual Task<Expected<void>> allocate(Handle handle, wire::Allocate what,
                                        Interrupt* interrupt = nullptr) = 0;
  struct CloneWish {
    Handle from{}, into{};
    std::uint64_t offset = 0, into_offset = 0, length = 0;
    bool drop_set_id = false;  ///< By who may not keep the set-ID bits.
  };
  /// copy_file_range(2) without a copy: both files share the blocks. How many bytes, which may be
  /// fewer than asked for; 0 at the end of `from`. EOPNOTSUPP where nothing can be shared: then
  /// whoever asks copies.
  virtual Task<Expected<std::uint64_t>> clone(CloneWish what, Interrupt* interrupt = nullptr) = 0;
  virtual Task<Expected<std::uint64_t>> seek(Handle handle, std::uint64_t offset,
                                             std::uint32_t whence) = 0;

  /// fcntl(2) and flock(2), over all nodes. The kernel does not say whether an owner is a process
  /// (record locks) or an open file (locks of open file descriptions, flock), but both are
  /// different from everybody else while they live.
  struct LockWish {
    LockKind kind{};
    std::uint64_t owner = 0;  ///< As the kernel names it.
    std::uint32_t pid = 0;
    LockRange range;
    LockType type{};
    bool wait = false;
  };
  /// EAGAIN if it is not free and does not want to wait; EDEADLK; ENOLCK beyond the bounds of
  /// docs/mount.md; EINTR at once if interrupted while it waits, and then everything is as if it
  /// had not been asked for (but that a whole file's lock that was to change its type is lost).
  virtual Task<Expected<void>> lock(Handle handle, LockWish wish,
                                    Interrupt* interrupt = nullptr) = 0;
  virtual Task<Expected<void>> unlock(Handle handle, LockWish wish) = 0;
  struct LockFound {
    LockRange range;
    LockType type{};
    std::uint32_t pid = 0;  ///< 0: of another node.
  };
  /// What keeps the wish from being granted, if anything.
  virtual Task<Expected<std::optional<LockFound>>> test_lock(Handle handle, LockWish wish) = 0;
  /// A descriptor of the handle was closed, perhaps not the last: its owner loses its locks on
  /// bytes of the file. Asks nobody if it has none. close() gives back what was locked through the
  /// handle.
  virtual Task<void> flush(Handle handle, std::uint64_t owner) = 0;

  /// The session under which a handle goes on; SessionId{}: under none yet, or never again.
  [[nodiscard]] virtual SessionId session_of(Handle handle) const = 0;

  struct Over {
    InodeId inode{};
    bool had_pages = false;  ///< The kernel may have pages of it.
    bool writes = false;     ///< Programs could write through a handle: also into later mappings.
  };
  /// Called with files whose handles are over, once that is known: at the end of the session under
  /// which they were open, or later.
  virtual void on_session_end(std::function<void(const std::vector<Over>&)> handler) = 0;
  [[nodiscard]] virtual MountCounters counters() const = 0;
  struct State {
    AccessMode mode{};
    std::string reason;
    TimePoint since{};
    SessionId session{};
    Key key{};
    TimePoint reached{};  ///< A write of our heartbeat slot that was sent then has been answered.
  };
  [[nodiscard]] virtual State state() const = 0;
  /// The lease has run out. Then nothing is sent to the LUN before this is asked again, even if it
  /// runs again: who is told so may rely on it until he is told otherwise.
  virtual bool says_closed() = 0;
};

}  // namespace csv
