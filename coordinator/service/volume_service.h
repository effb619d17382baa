#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "coordinator/cluster/storage_sign.h"
#include "coordinator/protocol/connection.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/blocking.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/random.h"
#include "csvfs/base/task.h"
#include "iscsi/open_lun.h"

namespace csv::service {

/// A copy of a volume's catalog that is being written beside the LUN, for the day on which that is
/// lost. On a worker thread; destroyed there, or before it was finished: nothing is left of it.
class CatalogFile {
 public:
  virtual ~CatalogFile() = default;
  virtual Expected<void> write(std::uint64_t offset, std::span<const std::byte> data) = 0;
  /// Durable, and in place of an older one; its path.
  virtual Expected<std::string> finish() = 0;
};

/// How long the coordinator waits for what.
struct Timing {
  Duration key_sweep = 1s;  ///< Between two reads of the LUN's keys.
  /// Of a membership lease; a session unheard for longer may be fenced. Several sweeps: a
  /// coordinator whose own writes (one a sweep) the LUN has not taken for this long is silent.
  Duration lease_term = 3s;
  /// A mount that lives is connected again within this, if any coordinator can be reached.
  Duration comes_back = 400ms;
  Duration reconnect_grace = 10s;  ///< A disconnected session is fenced after this, or after the
                                   ///< lease when it blocks somebody.
  Duration shipped_for =
      10s;  ///< A file with unaligned writers stays shipped this long after the last one.
  Duration maintenance = 200ms;  ///< Between two rounds of cleaning up.
  /// Files that lose their last name within this are reaped together.
  Duration gather_removed = 50ms;
  /// A connected session that does not answer a recall this long, while the LUN answers us, is
  /// fenced. Above a LUN command's deadline and a new admission, which the answer may have to wait
  /// for.
  Duration recall_patience = 30s;
  /// Nothing answered for so long, while the LUN answers another node: our path is lost.
  Duration path_patience = 2s;
  /// Between two copies of the catalog; zero: by command only.
  Duration catalog_copy = std::chrono::hours{24};
  /// After a takeover, before the first one that is due.
  Duration catalog_copy_after = std::chrono::minutes{10};
};

struct Surroundings {
  Loop* loop = nullptr;
  Random* random = nullptr;
  iscsi::LunOpener open_lun;
  std::function<std::unique_ptr<Worker>()> make_worker;  ///< The volume's writer thread.
  std::function<TimePoint()>
      open_until;  ///< This node's membership lease: past it nothing is answered.
  /// Until when a csvd on that node may answer from what it knows as a coordinator; none, or
  /// nullopt: not known.
  std::function<std::optional<TimePoint>(NodeId)> answers_until;
  /// The csvd that coordinated on that node has ended for certain.
  std::function<bool(NodeId)> process_gone;
  /// Whether this node shall still coordinate the volume, as far as it knows; none: it shall.
  std::function<bool()> wanted;
  /// Nodes whose mounts are not let in, and are thrown out; with the number of that fence.
  std::function<std::map<NodeId, std::uint64_t>()> fenced;
  /// How often a node has been fenced so; optional.
  std::function<std::uint64_t(NodeId)> fences;
  /// The others whose mounts are not: the cluster does not know them, or no longer.
  std::function<bool(NodeId)> belongs;
  /// The cluster does not hear that node at all, not only its csvd.
  std::function<bool(NodeId)> out_of_reach;
  /// The volume's LUN has answered a command that another node sent no earlier than this; none:
  /// nothing is known of others.
  std::function<TimePoint()> reached_by_others = {};
  std::function<void()> requested = {};  ///< With each request of a mount's; may be empty.
  NodeId node{};
  std::uint16_t cluster = 0;
  ClusterTag tag;
  std::string volume;
  Timing timing;
  /// Inodes that one session may know by heart; a mount keeps about as much.
  std::size_t most_watched = 100'000;
  /// Bytes for what grows with the number of files that are touched (memory.h).
  std::uint64_t memory = 320ull << 20;
  /// If the LUN has grown, the takeover lets the volume grow with it.
  bool grow = false;
  /// Makes the file that a copy of the catalog goes to; none: copies go to the LUN only.
  std::function<Expected<std::unique_ptr<CatalogFile>>()> open_catalog_file;
};

/// A volume being coordinated: sessions, admissions, layouts, the catalog, the sweep of keys. It
/// lives from a takeover until it is destroyed, or stops by itself (its path lost, its key gone, an
/// error of a catalog write, superseded). It never serves again after that; a new takeover does.
///
/// One loop; destroying it is like a crash of the process as far as the LUN can tell, unless
/// close() came first. The loop must run for a moment after that, since the writer thread ends
/// there.
class VolumeService {
 public:
  /// The takeover, in the order of docs/safety.md: register a fresh coordinator key, check that no
  /// newer cluster owns the volume, fence former coordinators, write the epoch to both superblocks,
  /// open the catalog, fence keys without a live row, then serve.
  static Task<Expected<std::unique_ptr<VolumeService>>> take_over(Surroundings surroundings);
  virtual ~VolumeService() = default;

  /// A mount's connection whose first message was this Hello. The connection must take a start()
  /// still: whoever looked at its first message hands on one that does.
  virtual void accept(std::unique_ptr<protocol::Connection> connection,
                      protocol::Message hello) = 0;
  /// Called once if it stops by itself, with why.
  virtual void on_stopped(Function<void(Error)> handler) = 0;
  /// Good order: stops accepting, drains its own LUN queue, checkpoints, closes. The key stays
  /// registered for the successor to preempt (A13, A20). Destroy it only after the task ended.
  virtual Task<void> close() = 0;

  struct SessionStatus {
    SessionId session{};
    NodeId node{};
    bool connected = false, admitted = false;
    Key key{};
    std::uint64_t open_files = 0, layouts = 0, requests = 0;
    std::uint64_t watched = 0;                ///< Inodes it knows by heart, at most.
    std::uint64_t locks = 0, lock_waits = 0;  ///< Of programs: held, and waited for.
    std::uint64_t redirected_read_bytes = 0, redirected_write_bytes = 0;
  };
  struct Status {
    Epoch epoch{};
    Key key{};
    TimePoint since{};
    std::uint64_t data_bytes = 0;  ///< Of the volume's data area, as its superblocks say.
    std::uint64_t total_blocks = 0, free_blocks = 0, inodes = 0;
    std::uint64_t transactions = 0, changes = 0, fences = 0, stale_commits = 0, recalls = 0;
    std::uint64_t unwatches = 0;  ///< Notices that names or attributes are to be forgotten.
    iscsi::LunCounters lun;       ///< Of the coordinator's own I/O: catalog and redirected content.
    std::uint64_t content_read_bytes = 0, content_write_bytes = 0;  ///< The latter's share.
    std::vector<SessionStatus> sessions;
  };
  [[nodiscard]] virtual Status status() const = 0;
  /// What the slots of the sessions' mounts show; of sessions that have not ended.
  [[nodiscard]] virtual std::vector<cluster::StorageSign> signs() const { return {}; }
  /// A command of the coordinator's own that was sent then has been answered by the LUN.
  [[nodiscard]] virtual TimePoint reached() const { return {}; }

  struct CatalogCopied {
    std::uint64_t pages = 0;
    WallTime taken_at{};
    std::string file;     ///< Empty: none was wanted or could be made.
    std::string no_file;  ///< Why.
    bool on_lun = false;
    volume::VolumeInfo info;  ///< The volume's when it was taken.
    /// What is wrong with superblocks and chunk headers.
    std::vector<std::string> problems;
  };
  /// Copies the catalog as it is at the call, while it goes on being changed, to the LUN and to a
  /// file. One at a time: Errc::retry while another is under way. Errc::closed if the service ends
  /// first, destroyed even: the task may outlive it, once it has begun.
  virtual Task<Expected<CatalogCopied>> copy_catalog();
  /// Of the nodes that are fenced now, those of which the last look at the LUN's keys has found
  /// nothing: no session, no admission and no key. None comes before they are fenced no more.
  [[nodiscard]] virtual std::map<NodeId, std::uint64_t> off() const { return {}; }
  [[nodiscard]] virtual Epoch epoch() const = 0;
  [[nodiscard]] virtual Key key() const = 0;
};

}  // namespace csv::service
