#include "coordinator/cluster/votes.h"

#include <algorithm>
#include <vector>

namespace csv::cluster {
namespace {

bool more_than_half(const Votes& votes, std::span<const NodeId> nodes, bool witness) {
  unsigned sum = witness ? votes.witness : 0;
  for (auto [node, vote] : votes.nodes)
    if (std::find(nodes.begin(), nodes.end(), node) != nodes.end()) sum += vote;
  return 2 * sum > votes.total();
}

}  // namespace

unsigned Votes::total() const {
  unsigned sum = witness;
  for (auto [node, vote] : nodes) sum += vote;
  return sum;
}

bool majority(const Ballot& ballot, std::span<const NodeId> nodes, bool witness) {
  return more_than_half(ballot.now, nodes, witness) &&
         (!ballot.before || more_than_half(*ballot.before, nodes, witness));
}

bool witness_decides(const Ballot& ballot, std::span<const NodeId> nodes) {
  return !majority(ballot, nodes, false) && majority(ballot, nodes, true);
}

Votes votes_for(const VotingRules& rules, std::span<const NodeId> present, bool witness_answers) {
  Votes votes;
  std::vector<NodeId> voters, here;
  for (auto [node, votes_at_all] : rules.voters) {
    votes.nodes[node] = 0;
    if (!votes_at_all) continue;
    voters.push_back(node);
    if (std::find(present.begin(), present.end(), node) != present.end()) here.push_back(node);
  }
  bool adapts = rules.dynamic && !rules.disk_only && !here.empty();
  const auto& counted = adapts ? here : voters;
  for (auto node : counted) votes.nodes[node] = 1;
  auto count = static_cast<unsigned>(counted.size());
  if (rules.disk_only) {
    votes.witness = count + 1;
  } else if (!adapts) {
    votes.witness = rules.witness ? 1 : 0;
  } else if (count % 2 == 0) {
    if (rules.witness && witness_answers) {
      votes.witness = 1;
    } else {
      // A tie that nobody could break would stop both halves.
      auto named = std::find(counted.begin(), counted.end(), rules.gives_way);
      votes.nodes[named != counted.end() ? *named : counted.back()] = 0;
    }
  }
  return votes;
}

}  // namespace csv::cluster
