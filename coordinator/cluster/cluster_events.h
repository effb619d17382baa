#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/replica.h"

namespace csv::cluster {

/// What of a replica its transitions are read from.
struct Sight {
  Replica::State state{};
  std::string reason;
  const Configuration* configuration = nullptr;
  std::vector<NodeId> members;  ///< Whose csvd takes part.
  std::vector<NodeId> nodes;    ///< Whose engine is reached.
  bool steward = false;
  bool witness_answers = false;
  bool prevents = false;  ///< This node was told to bring no cluster about.
};
Sight sight_of(const Replica& replica);

/// Tells a node's events (csvfs/base/events.h) of its cluster's transitions: quorum, nodes, votes,
/// witness, who is given a volume and why, and what people have changed. Each once; what lasts for
/// no longer than the members need to greet each other is none.
class ClusterEvents {
 public:
  /// After every change of what can be seen.
  void look(const Sight& now);
  /// Why the volume goes where it will go next, as this node has decided; "": it does not go.
  void because(const std::string& volume, std::string why);

 private:
  void quorum(const Sight& now);
  void members(const Sight& now);
  void configuration(const Sight& now);
  void votes(const Sight& now);
  void volumes(const Sight& now);
  void witness(const Sight& now);
  void prevention(const Sight& now);

  std::optional<std::string> first_reason_;  ///< Before anything was heard.
  std::optional<std::uint64_t> forced_;
  std::optional<bool> quorate_;
  std::optional<std::set<NodeId>> members_;
  std::optional<Configuration> known_;  ///< The last one that was in force.
  std::optional<Votes> votes_;
  std::optional<bool> witness_answers_;
  bool prevents_ = false;
  std::map<std::string, std::string> because_;
};

}  // namespace csv::cluster
