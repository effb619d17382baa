#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/cluster/voting_membership.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// Judges that a cluster never goes on as two:
///
/// - a coordinator says nothing any more once a later one of its volume has said something;
/// - what was made stays made: every configuration in force has whatever was in force before it,
/// and none is there twice with two contents. Only what was forced need not know of what others
/// made before: those were off;
/// - once a side has formed without a node, that node's lease ends within a term: who was left
/// behind gets no more of it, from the witness least of all.
class Sides {
 public:
  Sides(World& world, std::function<void(std::string)> violation)
      : world_{world}, violation_{std::move(violation)} {}

  /// A coordinator sends something to a mount.
  void said(const std::string& volume, NodeId node, Epoch epoch);
  /// What a node knows, whenever that has changed; its lease ends at `lease`, as the world has it.
  void look(NodeId node, const cluster::VotingMembership& membership, Duration lease);

  /// How often a side formed that would have been none without the witness.
  [[nodiscard]] std::uint64_t by_witness() const { return by_witness_; }
  [[nodiscard]] std::uint64_t formed() const { return formed_.size(); }

 private:
  struct Formed {
    Duration at{};
    std::set<NodeId> nodes;
  };
  void in_force(const cluster::Configuration& configuration);
  void fail(std::string what) { violation_("no two sides: " + std::move(what)); }

  World& world_;
  std::function<void(std::string)> violation_;
  std::map<std::string, std::pair<Epoch, NodeId>> newest_;  ///< That has said something, by volume.
  std::map<ClusterTag, std::string> in_force_;
  std::map<ClusterTag, std::map<std::string, std::uint64_t>> turns_;
  /// How often a quorum was forced, and the epoch.
  using Era = std::pair<std::uint64_t, std::uint64_t>;
  std::map<Era, Formed> formed_;
  std::map<NodeId, Era> last_;  ///< That a node was formed in.
  std::uint64_t by_witness_ = 0;
};

}  // namespace csv::sim
