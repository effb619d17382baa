#pragma once
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/lease_timing.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/protocol/connection.h"

namespace csv::cluster {

/// The engine without votes: every csvd beats to every other one it is configured with and echoes
/// theirs, and an echo says what the echoing node coordinates. A node's lease for a volume runs
/// from the last beat that the node which coordinates the volume has echoed; that node's own is its
/// own. Nothing fails over by itself here: who takes a volume over is configured or commanded, and
/// the LUN decides between two that try.
class StandaloneMembership final : public Membership {
 public:
  struct Peer {
    NodeId id{};
    std::string name;
    std::string address;
  };
  struct Surroundings {
    Loop* loop = nullptr;
    protocol::Transport* transport = nullptr;
    NodeId node{};
    std::string endpoint;           ///< Of this node, for coordinator().
    std::uint64_t incarnation = 0;  ///< Random, not 0; one life of this process.
    std::vector<Peer> peers;
    LeaseTiming timing;
    /// Called after every beat and every echo, from the loop: leases have been renewed, or what is
    /// known has changed. Must not destroy the membership.
    std::function<void()> changed;
  };

  explicit StandaloneMembership(Surroundings surroundings);
  ~StandaloneMembership() override;

  void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message beat) override;
  void coordinating(const std::string& volume, Epoch epoch, Key key) override;
  void gave_up(const std::string& volume) override;
  [[nodiscard]] std::optional<Coordinator> coordinator(const std::string& volume) const override;
  [[nodiscard]] TimePoint open_until(const std::string& volume) const override;
  [[nodiscard]] TimePoint open_until() const override { return own_lease_; }
  [[nodiscard]] std::vector<PeerStatus> peers() const override;
  [[nodiscard]] bool settled() const override;
  [[nodiscard]] bool all_present() const override;
  [[nodiscard]] bool claimed_by_peer(const std::string& volume) const override;

 private:
  struct Claim {
    Epoch epoch{};
    Key key{};
  };
  using Claims = std::map<std::string, Claim>;
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
    TimePoint connected_at{}, last_echo{}, last_heard{};
    Claims claims;
  };

  void tick();
  void reach(Other& other);
  void beat(Other& other);
  void refuse_echoes(Other& other, std::uint32_t as_node);
  void take_echo(Other& other, const protocol::Message& message);
  void take_beat(Other& other, const protocol::Message& message);
  void echo(Other& other);
  void renew(const std::string& volume, NodeId by, TimePoint sent_at);
  [[nodiscard]] bool present(const Other& other) const;
  Other* find(std::uint32_t node);

  Surroundings with_;
  std::map<NodeId, std::unique_ptr<Other>> others_;
  Claims own_;
  std::map<std::string, TimePoint> leases_;
  TimePoint own_lease_{};
  std::set<std::uint32_t> strangers_;  ///< Nodes refused, each said once; limits.h bounds them.
  Loop::TimerId timer_{};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  ///< For connects on their way.
};

}  // namespace csv::cluster
