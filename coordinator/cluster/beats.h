#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/lease_timing.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/storage_sign.h"
#include "coordinator/protocol/connection.h"

namespace csv::cluster {

/// What the csvds of all nodes say to each other several times a second, each to each: a beat, and
/// its echo, which says what the echoing node coordinates and whether the beat is worth a lease.
/// What follows from them, a membership decides. One loop.
class Beats {
 public:
  struct Peer {
    NodeId id{};
    std::string name;
    std::string address;
    bool operator==(const Peer&) const = default;
  };
  struct Echo {
    TimePoint sent_at{};   ///< When the beat was sent that it answers.
    bool refused = false;  ///< The beat is worth no lease.
    Duration witness{};    ///< After sent_at: that long the peer's side holds the witness, surely.
  };
  /// What an echo to a peer says of its beat.
  struct Worth {
    bool refused = false;
    Duration witness{};
  };
  struct Surroundings {
    Loop* loop = nullptr;
    protocol::Transport* transport = nullptr;
    NodeId node{};
    std::string endpoint;           ///< Of this node, for coordinator().
    std::uint64_t incarnation = 0;  ///< Random, not 0; one life of this process.
    LeaseTiming timing;
    std::function<Worth(NodeId)> worth;
    /// What the peers are told of storage, with each echo: this node's ways to LUNs, and what it
    /// sees as a coordinator. May be empty.
    std::function<std::vector<Reached>()> reached = {};
    std::function<std::vector<StorageSign>()> signs = {};
    /// From the loop. Neither may destroy this.
    std::function<void(NodeId, const Echo&)> echoed;
    /// After every round of beats, every echo, every claim, and when a peer is lost.
    std::function<void()> changed;
  };

  explicit Beats(Surroundings surroundings);
  ~Beats();

  /// Beats from now on, to the peers that were set, and are.
  void start();
  /// Those that stay keep their connections. This node among them is passed over.
  void set_peers(const std::vector<Peer>& peers);
  /// A peer's connection whose first message was this beat.
  void accept(std::unique_ptr<protocol::Connection> connection, const protocol::Message& beat);

  /// What this node coordinates from now on, and no longer: told with an echo at once.
  void claim(const std::string& volume, Epoch epoch, Key key);
  void disclaim(const std::string& volume);

  /// As Membership has them.
  [[nodiscard]] std::optional<Coordinator> coordinator(const std::string& volume) const;
  [[nodiscard]] std::vector<PeerStatus> peers() const;
  [[nodiscard]] bool settled() const;
  [[nodiscard]] bool all_present() const;
  [[nodiscard]] bool claimed_by_peer(const std::string& volume) const;
  /// No csvd runs at the peer's address: its machine said so, since it was last heard.
  [[nodiscard]] bool absent(NodeId peer) const;
  /// It echoed a beat within the last term.
  [[nodiscard]] bool present(NodeId peer) const;
  /// And a beat of its own came: the connection that it makes works, too, without which it has no
  /// echoes and so no lease.
  [[nodiscard]] bool both_ways(NodeId peer) const;
  /// When a beat of the peer was last answered as worth a lease.
  [[nodiscard]] const std::map<NodeId, TimePoint>& granted() const { return granted_; }

  struct Claim {
    Epoch epoch{};
    Key key{};
  };
  using Claims = std::map<std::string, Claim>;
  [[nodiscard]] const Claims& own() const { return own_; }
  /// What the peer said that it coordinates; nothing of a node that is no peer.
  [[nodiscard]] Claims claims_of(NodeId peer) const;
  /// The volume's LUN answers peers: at least one has sent a command no earlier than this, and had
  /// its answer. The clock's beginning: none is known to.
  [[nodiscard]] TimePoint reached_by_peers(const std::string& volume) const;
  /// What present peers see as coordinators, times by this node's clock.
  [[nodiscard]] std::vector<StorageSign> peers_signs() const;

 private:
  /// A peer as we beat to it, and as it beats to us.
  struct Other {
    Peer peer;
    std::unique_ptr<protocol::Connection> out;  ///< Our beats, its echoes.
    std::unique_ptr<protocol::Connection> in;   ///< Its beats, our echoes.
    bool connecting = false, echoed = false, absent = false;
    bool wrong = false;         ///< Somebody else answers at its address; said once.
    bool impersonated = false;  ///< Somebody else beat in its name; said once.
    std::string trouble;        ///< Why it could not be reached last; said when it changes.
    std::uint64_t incarnation = 0;
    std::int64_t last_beat = 0;  ///< sent_at of its last one on `in`.
    unsigned brief = 0;          ///< Connections in a row that did not last.
    TimePoint not_before{};      ///< The next attempt.
    TimePoint connected_at{}, last_echo{}, last_heard{};
    Claims claims;
    std::map<std::string, TimePoint> reached;
    std::vector<StorageSign> signs;
    std::shared_ptr<bool> alive = std::make_shared<bool>(true);  ///< For connects on their way.
  };

  void tick();
  void reach(Other& other);
  void lost(Other& other, const Error& why);
  [[nodiscard]] Duration pause_after(unsigned brief) const;
  void beat(Other& other);
  void refuse_echoes(Other& other, std::uint32_t as_node);
  void take_echo(Other& other, const protocol::Message& message);
  void take_beat(Other& other, const protocol::Message& message);
  void echo(Other& other);
  void take_signs(Other& other, const wire::BeatEcho& echo);
  [[nodiscard]] bool present(const Other& other) const;
  Other* find(std::uint32_t node);

  Surroundings with_;
  std::map<NodeId, std::unique_ptr<Other>> others_;
  Claims own_;
  std::map<NodeId, TimePoint> granted_;
  std::set<std::uint32_t> strangers_;  ///< Nodes refused, each said once; limits.h bounds them.
  Loop::TimerId timer_{};
};

}  // namespace csv::cluster
