#pragma once
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/beats.h"
#include "coordinator/cluster/cluster_events.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/node_watch.h"
#include "coordinator/cluster/placement.h"
#include "coordinator/cluster/replica.h"

namespace csv::cluster {

/// Membership with votes. Who is here, the engine says; what the cluster is and who coordinates
/// which volume, its configuration says (replica.h); until when this node may act, the echoes of
/// the others say: its lease runs to the moment at which it *sent* its last beat that a majority of
/// votes, itself included, has answered as worth a lease, plus the term (A14). A node answers so
/// only while its own view holds that peer, and goes on; so when a node is left behind, its lease
/// ends by itself, and those who go on know when (answers_until).
///
/// One loop.
class VotingMembership final : public Membership {
 public:
  /// A volume as this node has it configured.
  struct LocalVolume {
    std::string name;
    std::uint32_t mounted = 0;  ///< Uses of it on this node: a coordinator is best where these are.
    /// If this node coordinates it: fenced nodes of which nothing is left on the LUN.
    std::map<NodeId, std::uint64_t> off = {};
    bool at_work = false;  ///< This node takes it over, serves it or closes it.
  };
  struct Surroundings {
    Loop* loop = nullptr;
    protocol::Transport* transport = nullptr;
    Engine* engine = nullptr;
    ConfigurationStore* store = nullptr;
    NodeId node{};
    std::string endpoint;
    std::uint64_t incarnation = 0;
    Kept kept;                       ///< What was found on this node's disk.
    std::vector<Beats::Peer> peers;  ///< Known before there is a configuration.
    LeaseTiming timing;
    Replica::Timing replica;
    /// After a failed takeover this node is tried again; after each further one only after twice
    /// as long, up to the longest.
    Duration able_again = 30s, able_again_longest = std::chrono::hours{1};
    std::function<std::vector<LocalVolume>()> volumes;
    /// A witness for what the configuration says; null: none can be had, which is said in the log.
    std::function<std::unique_ptr<Witness>(const WitnessRecord&)> make_witness;
    /// As in Beats; may be empty.
    std::function<std::vector<Reached>()> reached;
    std::function<std::vector<StorageSign>()> signs;
    /// Whether a machine answers, asked by its address ("address:port"); answered from the loop,
    /// within seconds, or never. Empty: nobody is asked.
    std::function<void(const std::string& address, Function<void(bool)> done)> ping;
    std::function<void()> changed;
  };

  explicit VotingMembership(Surroundings surroundings);
  ~VotingMembership() override;

  void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message beat) override;
  void coordinating(const std::string& volume, Epoch epoch, Key key) override;
  void gave_up(const std::string& volume) override;
  [[nodiscard]] std::optional<Coordinator> coordinator(const std::string& volume) const override;
  [[nodiscard]] TimePoint open_until(const std::string& volume) const override;
  [[nodiscard]] TimePoint open_until() const override { return lease_; }
  [[nodiscard]] std::vector<PeerStatus> peers() const override { return beats_.peers(); }
  [[nodiscard]] bool settled() const override { return beats_.settled(); }
  [[nodiscard]] bool all_present() const override { return beats_.all_present(); }
  [[nodiscard]] bool claimed_by_peer(const std::string& volume) const override;
  [[nodiscard]] std::optional<Assignment> assigned(const std::string& volume) const override;
  [[nodiscard]] ClusterTag tag() const override;
  [[nodiscard]] std::optional<TimePoint> answers_until(NodeId node) const override;
  [[nodiscard]] bool process_gone(NodeId node) const override;
  [[nodiscard]] bool out_of_reach(NodeId node) const override;
  [[nodiscard]] std::map<NodeId, std::uint64_t> fenced() const override;
  [[nodiscard]] std::uint64_t fences(NodeId node) const override;
  [[nodiscard]] bool belongs(NodeId node) const override;
  void able(const std::string& volume, bool yes) override;

  /// It is fenced, and whoever coordinates a volume has found nothing of it on its LUN since; of
  /// every volume that the cluster knows. Never without a lease: what this node knows may be old.
  [[nodiscard]] bool proven_off(NodeId node) const;
  /// Whom the cluster has given the volume to says that it coordinates it; of one that is stopped,
  /// anybody.
  [[nodiscard]] bool served(const std::string& volume) const;
  /// Of a volume that is stopped: no member is at work on it, and the leases have ended that there
  /// were when it was: so nobody coordinates it and every mount's gate is closed, also where nobody
  /// could be told. Never before the cluster has formed here for as long as that takes.
  [[nodiscard]] bool closed(const std::string& volume) const;

  /// Whether the node says that it can coordinate the volume: not where an attempt has just failed
  /// there, after which it would be taken from it again at once.
  [[nodiscard]] bool says_able(const std::string& volume, NodeId node) const;

  /// For commands.
  [[nodiscard]] Replica& replica() { return *replica_; }
  [[nodiscard]] const Replica& replica() const { return *replica_; }
  [[nodiscard]] TimePoint reached_by_peers(const std::string& volume) const {
    return beats_.reached_by_peers(volume);
  }
  /// What is thought of another node; null: nothing yet, or this node sees nobody.
  [[nodiscard]] const NodeWatch::Opinion* opinion(NodeId node) const { return watch_.of(node); }
  [[nodiscard]] const Witness* witness() const { return witness_.get(); }

 private:
  void tick();
  void replica_changed();
  void use_configuration();
  [[nodiscard]] const Configuration* acts_by() const;
  [[nodiscard]] bool stopped(const std::string& volume) const;
  void see_members();
  void see_stopped();
  void ran();
  [[nodiscard]] bool stood_still() const;
  /// Shorter ones make nobody silent who is not: a peer is that after a term without an echo.
  [[nodiscard]] Duration standstill() const { return with_.timing.term / 2; }
  [[nodiscard]] bool responsive(NodeId node) const;
  void renew();
  void note();
  void place();
  void see_who_is_apart();
  void judge_others();
  void ask(NodeId node, const std::string& address);
  Task<void> settle(std::vector<std::string> fresh, std::vector<cluster::Assignment> moves);
  [[nodiscard]] Beats::Worth worth(NodeId peer) const;
  void take_echo(NodeId by, const Beats::Echo& echo);
  [[nodiscard]] Replica::Granted granted() const;

  Surroundings with_;
  TimePoint began_;              ///< This process.
  TimePoint ran_;                ///< When it did so last.
  Duration to_listen_{};         ///< So long after a standstill nobody is newly taken for silent.
  TimePoint joined_;             ///< When the members changed last.
  std::vector<Member> members_;  ///< As they were then.
  bool full_ = false;            ///< A volume could not be added; said.
  Beats beats_;
  std::unique_ptr<Replica> replica_;
  std::unique_ptr<Witness> witness_;
  WitnessRecord witness_record_;
  ClusterTag used_;  ///< Of the configuration that peers and witness were taken from.
  bool used_any_ = false;
  TimePoint lease_{};
  std::map<NodeId, TimePoint> echoed_;     ///< When a beat of ours was sent that was worth a lease.
  std::map<std::string, Setback> unable_;  ///< Since the last takeover that went well.
  std::map<std::string, TimePoint> moved_;  ///< When its coordinator changed last, as seen here.
  std::map<std::string, std::uint64_t> turns_;
  /// Of volumes that are stopped: the lease as it was then.
  std::map<std::string, TimePoint> gates_;
  /// Since when they have been so in a cluster that has formed, in this node's sight.
  std::map<std::string, TimePoint> stopped_since_;
  /// Since when; whether it is given no volumes.
  std::map<NodeId, std::pair<TimePoint, bool>> present_;
  /// Of members that hear a majority: since when two do not hear each other.
  std::map<std::pair<NodeId, NodeId>, TimePoint> apart_;
  bool placing_ = false;
  NodeWatch watch_;
  ClusterEvents events_;
  std::set<NodeId> heard_;  ///< The peers that are present.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  TaskScope tasks_;
};

}  // namespace csv::cluster
