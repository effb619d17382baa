#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/cluster/beats.h"
#include "coordinator/cluster/membership.h"

namespace csv::cluster {

/// The engine without votes. A node's lease for a volume runs from the last beat that the node
/// which coordinates the volume has echoed; that node's own is its own. Nothing fails over by
/// itself here: who takes a volume over is configured or commanded, and the LUN decides between two
/// that try.
class StandaloneMembership final : public Membership {
 public:
  using Peer = Beats::Peer;
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

  void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message beat) override;
  void coordinating(const std::string& volume, Epoch epoch, Key key) override;
  void gave_up(const std::string& volume) override { beats_.disclaim(volume); }
  [[nodiscard]] std::optional<Coordinator> coordinator(const std::string& volume) const override {
    return beats_.coordinator(volume);
  }
  [[nodiscard]] TimePoint open_until(const std::string& volume) const override;
  [[nodiscard]] TimePoint open_until() const override { return own_lease_; }
  [[nodiscard]] std::vector<PeerStatus> peers() const override { return beats_.peers(); }
  [[nodiscard]] bool settled() const override { return beats_.settled(); }
  [[nodiscard]] bool all_present() const override { return beats_.all_present(); }
  [[nodiscard]] bool claimed_by_peer(const std::string& volume) const override {
    return beats_.claimed_by_peer(volume);
  }

 private:
  Beats::Surroundings around(Surroundings with);
  void renew_own();
  void renew(const std::string& volume, NodeId by, TimePoint sent_at);

  Loop* loop_;
  NodeId node_;
  Duration term_;
  std::function<void()> changed_;
  std::map<std::string, TimePoint> leases_;
  TimePoint own_lease_{};
  Beats beats_;
};

}  // namespace csv::cluster
