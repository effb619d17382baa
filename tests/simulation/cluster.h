#pragma once
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/cluster/configuration_store.h"
#include "coordinator/cluster/standalone_membership.h"
#include "coordinator/cluster/voting_membership.h"
#include "coordinator/protocol/first_message.h"
#include "coordinator/service/coordination.h"
#include "coordinator/service/volume_service.h"
#include "coordinator/volume/check.h"
#include "csvfs/finder.h"
#include "csvfs/mount.h"
#include "iscsi/ram_lun.h"
#include "tests/simulation/group.h"
#include "tests/simulation/kept_disk.h"
#include "tests/simulation/network.h"
#include "tests/simulation/one_writer.h"
#include "tests/simulation/page_cache.h"
#include "tests/simulation/sides.h"
#include "tests/simulation/witness_place.h"
#include "tests/simulation/worker.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// What csvd leaves in shared memory for the mount of its node; outlives both.
struct Board {
  std::string endpoint;
  NodeId coordinator{};
  Epoch epoch{};
  TimePoint open_until{};
};

/// What the target could not write out: flushes that fail.
struct FlushFailures {
  enum class Whose { anybodys, mounts, coordinators };
  bool possible = false;  ///< At all, in this life.
  unsigned left = 0;      ///< The next ones fail,
  Whose whose{};
  bool forgets = false;  ///< and what the cache held is gone. All who are logged in are told so.
};

/// How hard the storage is to get along with, besides losing paths.
struct DiskWeather {
  std::uint64_t stall_in = 0;        ///< One command in so many takes seconds. 0: none.
  std::uint64_t hiccup_in = 400;     ///< One in so many takes tens of milliseconds.
  std::uint64_t lost_answer_in = 0;  ///< One in so many takes effect, but its answer is lost.
  std::uint64_t lie_in = 0;          ///< One write in so many is answered and never made.
  bool full = false;                 ///< A thin LUN: it takes nothing but what the catalog claimed.
  bool foreigners = false;  ///< Others may take the reservation away: nothing lands late then.
  FlushFailures flushes;
};

/// A volume on a LUN of its own.
struct Volume {
  std::string name;
  std::shared_ptr<iscsi::RamDisk> disk;
  DiskWeather weather;
  std::uint64_t content_from = 0;  ///< Where on the LUN the catalog's chunks end.
  std::unique_ptr<OneWriter> one_writer;
};

/// A running program of a node, with a loop and doors of its own. Killing it takes its objects away
/// and cuts its doors; the loop lives on in the graveyard, so that workers find their end.
struct Process {
  Process(World& world, Network& network, std::string name, NodeId node, SimLoop::Skew skew);
  std::unique_ptr<SimLoop> loop;
  Random random;
  std::unique_ptr<protocol::Transport> door;
  std::shared_ptr<bool> alive = std::make_shared<bool>(true);
};

class Cluster;

/// csvd on one node: the real membership, and of each volume the real coordination and service, put
/// together as its daemon does.
class Csvd {
 public:
  Csvd(Cluster& cluster, std::size_t node);
  void kill();  ///< The destructor alone is for the end of the world.

  /// As by command: takes the volume over, from whoever has it; gives it up in good order.
  void start_volume(std::size_t volume = 0);
  void stop_volume(std::function<void()> done, std::size_t volume = 0);
  [[nodiscard]] service::VolumeService* service(std::size_t volume = 0) const {
    return coordination(volume).service();
  }
  [[nodiscard]] service::Coordination::State state(std::size_t volume = 0) const {
    return coordination(volume).state();
  }
  [[nodiscard]] const std::string& reason(std::size_t volume = 0) const {
    return coordination(volume).reason();
  }
  /// As by command, where nodes vote: those it reaches go on, whoever else there may be. Told
  /// whether they do.
  void force_quorum(std::function<void(bool)> done);
  /// Null where nodes do not vote.
  [[nodiscard]] cluster::VotingMembership* membership() const { return voting_; }
  [[nodiscard]] Process& process() { return process_; }

 private:
  std::unique_ptr<cluster::Membership> standalone();
  std::unique_ptr<cluster::Membership> voting();
  [[nodiscard]] service::Coordination& coordination(std::size_t volume) const {
    return *coordinations_[volume];
  }
  std::unique_ptr<service::Coordination> make_coordination(std::size_t volume);
  Task<void> start(std::size_t volume);
  Task<void> stop(std::size_t volume, std::function<void()> done);
  Task<void> force(std::function<void(bool)> done);
  Task<Expected<std::unique_ptr<service::VolumeService>>> take_over(std::size_t volume);
  void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message first);
  void publish();

  Cluster& cluster_;
  std::size_t node_;
  Process process_;
  std::unique_ptr<cluster::Engine> engine_;
  std::unique_ptr<KeptDisk> store_;
  std::unique_ptr<cluster::Membership> membership_;
  cluster::VotingMembership* voting_ = nullptr;  ///< The membership, where nodes vote.
  std::vector<std::unique_ptr<service::Coordination>> coordinations_;  ///< By volume.
  std::vector<std::optional<cluster::Coordinator>> published_;
  std::unique_ptr<protocol::FirstMessages> first_messages_;
  std::unique_ptr<protocol::Transport::Listener> listener_;
  std::unique_ptr<TaskScope> tasks_ = std::make_unique<TaskScope>();
};

/// csvfs on one node, of one volume: the real Mount, and the programs that use it.
class Csvfs {
 public:
  Csvfs(Cluster& cluster, std::size_t node, std::size_t volume);
  void kill();
  /// Unmounts in good order.
  void end(std::function<void()> done);
  [[nodiscard]] Mount& mount() { return *mount_; }
  [[nodiscard]] Process& process() { return process_; }
  PageCache& pages() { return *pages_; }
  /// Programs; gone before the mount is.
  TaskScope& programs() { return *programs_; }
  [[nodiscard]] std::uint64_t incarnation() const { return incarnation_; }
  /// A coordinator greets it, under what the target's memory is there. True: it has lost something
  /// since the one before.
  bool greeted(std::uint64_t verifier);

 private:
  [[nodiscard]] const Board& board() const;

  Cluster& cluster_;
  std::size_t node_, volume_;
  Process process_;
  std::uint64_t incarnation_;
  std::optional<std::uint64_t> verifier_;
  std::unique_ptr<Finder> finder_;
  std::unique_ptr<Mount> mount_;
  std::unique_ptr<PageCache> pages_;
  std::unique_ptr<TaskScope> programs_ = std::make_unique<TaskScope>();
};

/// For tests: from now on only errors are logged.
void be_quiet();

/// What the world does that no protocol survives, to see the judges bite.
struct Broken {
  bool unfenced = false;                ///< The target lets everything through, whoever was fenced.
  bool mounts_gate_stays_open = false;  ///< A mount's membership lease never ends.
  bool csvds_gate_stays_open = false;   ///< A coordinator's neither.
  bool kernels_keep_pages = false;      ///< That they say they have dropped.
  bool zeros_not_made = false;          ///< The target answers that a range is zero, and it is not.
  /// Blocks are given out again while the UNMAP that freed them is still under way, and no fence
  /// stops it.
  bool unmaps_not_awaited = false;
  bool flushes_lie = false;  ///< One that fails is answered as if it had not.
  Network::Forgery forgery;
  WitnessPlace::Forgery witness;
};

struct ClusterOptions {
  std::size_t nodes = 3, volumes = 1;
  bool voting = false;  ///< The nodes vote on who coordinates; else an administrator decides.
  WitnessPlace::Options witness;  ///< Of nodes that vote.
  iscsi::RamDiskOptions disk;
  DiskWeather weather;
  Broken broken;
  Duration reconnect_grace = service::Timing{}.reconnect_grace;
};

/// Nodes, a network and a LUN for each volume, all virtual, around the code that ships.
class Cluster {
 public:
  Cluster(World& world, ClusterOptions options);
  ~Cluster();

  static constexpr std::uint16_t kClusterId = 4711;
  static constexpr std::uint64_t kMountIsid = 2;  ///< Of a node's mount, as a seed.

  void format();
  void start_csvd(std::size_t node);
  void kill_csvd(std::size_t node);
  /// Of all volumes, and of one.
  void start_mounts(std::size_t node);
  void start_mount(std::size_t node, std::size_t volume = 0);
  void kill_mount(std::size_t node, std::size_t volume = 0);
  /// A volume's target is gone for a moment with all sessions, and whatever nobody had flushed.
  void power_loss(std::size_t volume = 0);
  /// The whole node, without a word to anybody.
  void power_off(std::size_t node);
  void power_on(std::size_t node);
  /// The whole node stands still until then, as a virtual machine that is paused, or sleeps.
  void pause(std::size_t node, Duration until);
  /// Its wall clock says so much more than is true, from now on.
  void set_wall_clock(std::size_t node, Duration ahead);
  /// Of a node's own disk: nothing can be written.
  void set_disk_full(std::size_t node, bool full) { nodes_[node].disk_full = full; }
  /// What is on the LUN, seen by nobody's programs: nothing may run meanwhile.
  Expected<volume::CheckReport> check(std::size_t volume = 0);

  [[nodiscard]] std::size_t size() const { return nodes_.size(); }
  [[nodiscard]] Csvd* csvd(std::size_t node) const { return nodes_[node].csvd.get(); }
  [[nodiscard]] std::size_t volumes() const { return volumes_.size(); }
  [[nodiscard]] Volume& volume(std::size_t volume = 0) { return volumes_[volume]; }
  [[nodiscard]] Csvfs* mount(std::size_t node, std::size_t volume = 0) const {
    return nodes_[node].mounts[volume].get();
  }
  [[nodiscard]] bool powered(std::size_t node) const { return nodes_[node].powered; }
  /// Whoever serves the volume as far as it knows itself; of several the newest.
  [[nodiscard]] std::optional<std::size_t> coordinator(std::size_t volume = 0) const;
  /// The administrator: whenever nobody has served a volume for a while, some living node is told
  /// to take it over.
  void govern();
  void stop_governing() { governed_ = false; }

  static NodeId id(std::size_t node) { return NodeId{static_cast<std::uint8_t>(node + 1)}; }
  static std::string initiator(std::size_t node) {
    return "iqn.2026-01.org.csvfs:node" + std::to_string(node + 1);
  }
  static std::string endpoint(std::size_t node) { return "node" + std::to_string(node + 1); }

  World& world;
  Network network;
  Group group;
  bool voting;
  SimLoop disk_loop;
  WitnessPlace witness;
  Sides sides;
  Broken broken;
  const Duration reconnect_grace;
  std::uint64_t takeovers = 0;
  std::vector<MountCounters> counters;  ///< Of mounts that are gone.
  /// Programs may be started.
  std::function<void(std::size_t node, std::size_t volume)> on_mounted;
  /// What shall become of a command, where the weather is not what is wanted.
  std::function<void(const iscsi::RamCommand&, iscsi::RamFate&)> on_command;
  /// A node's csvd sends a command to a volume's LUN. It may not be killed before that is done.
  std::function<void(std::size_t node, const iscsi::RamCommand&)> on_csvd_sends;
  /// A command was answered not_durable: a mount's of that node, or of whoever coordinates.
  struct NotDurable {
    std::size_t volume = 0;
    std::optional<std::size_t> mount;
    bool forgot = false, deferred = false;
  };
  std::function<void(const NotDurable&)> on_not_durable;
  /// The node's mount hears from a coordinator that the target has lost something, or may have.
  std::function<void(std::size_t node, std::size_t volume)> on_told_of_loss;
  /// Something that must never be was seen by a judge.
  std::function<void(std::string)> on_violation;
  /// Wraps the death of a mount, which the function does.
  std::function<void(std::size_t node, std::size_t volume, const std::function<void()>&)>
      on_mount_dies;

 private:
  friend class Csvd;
  friend class Csvfs;
  struct Node {
    std::vector<Board> boards;  ///< By volume.
    SimLoop::Skew skew;
    cluster::Kept kept;  ///< On the node's own disk.
    bool powered = true, disk_full = false;
    Duration paused_until{};
    std::unique_ptr<Csvd> csvd;
    std::vector<std::unique_ptr<Csvfs>> mounts;  ///< By volume.
  };
  iscsi::LunOpener opener(Process& process, std::size_t node, std::size_t volume,
                          std::uint64_t isid_seed);
  iscsi::LunOpener witness_opener(Process& process, std::size_t node);
  iscsi::RamFate fate(const Volume& volume, const iscsi::RamCommand& command);
  /// The mount of that node, or a coordinator, sends a command to the volume's LUN.
  void may_not_be_durable(std::size_t volume, std::optional<std::size_t> mount,
                          const iscsi::RamCommand& command, iscsi::RamFate& fate);
  [[nodiscard]] bool all_have_a_path(std::size_t volume) const;
  void govern(std::size_t volume, int missing);
  void bury(Process& process);
  void greeted(const SimLoop& mount, std::uint64_t verifier);
  void violated(std::string what) {
    if (on_violation) on_violation(std::move(what));
  }
  void format_witness();
  /// Runs `work` on a stack that may wait for the LUN, while the world goes on.
  void run_blocking(Volume& volume, Function<void(iscsi::BlockingLun&)> work);

  std::vector<Volume> volumes_;
  std::vector<Node> nodes_;
  std::vector<std::unique_ptr<SimLoop>> graveyard_;
  bool governed_ = false;
  OneWriter::Writer next_connection_ = 1;
};

}  // namespace csv::sim
