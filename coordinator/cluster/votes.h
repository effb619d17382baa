#pragma once
#include <map>
#include <optional>
#include <span>

#include "csvfs/base/ids.h"

namespace csv::cluster {

/// Whose vote counts, and how much. A value.
struct Votes {
  std::map<NodeId, unsigned> nodes;  ///< 0 or 1 each: every node of the cluster, present or not.
  unsigned witness = 0;  ///< 0: none, or it does not count now; more than all nodes: *disk only*.
  bool operator==(const Votes&) const = default;
  [[nodiscard]] unsigned total() const;
};

/// The votes in force. While they change (or the list of nodes, or the witness) both must agree:
/// a change counts only when it is durable on a majority of the votes before and of those after it
/// (A4), and until it is known to be, a partition goes on only if it would by both.
struct Ballot {
  Votes now;
  std::optional<Votes> before;
  bool operator==(const Ballot&) const = default;
};

/// Whether more than half of the votes, by every set in force, are those of `nodes`, and of the
/// witness if `witness`. Serves both questions: does a partition go on (the nodes reached, and does
/// this side hold the witness), and has enough been stored (the nodes, and does the witness store
/// it). Nodes without an entry have no vote.
bool majority(const Ballot& ballot, std::span<const NodeId> nodes, bool witness);

/// The witness would decide: without it `nodes` are no majority, with it they are.
bool witness_decides(const Ballot& ballot, std::span<const NodeId> nodes);

/// What an administrator said of votes, as against what counts just now.
struct VotingRules {
  std::map<NodeId, bool> voters;  ///< Every node; false: `node vote 0` (a remote site).
  bool witness = false;           ///< There is one.
  bool disk_only = false;         ///< The witness alone decides.
  bool dynamic = true;            ///< Dynamic quorum and dynamic witness.
  /// Whose vote is given up first when two halves would be equal; the highest number otherwise.
  std::optional<NodeId> gives_way;
};

/// The votes that should be in force with these nodes present, for a side that goes on; it has an
/// entry for every node of `rules`. Dynamic: absent nodes have none, so that nodes can go one by
/// one down to the last; the witness counts only while the number of node votes is even, and where
/// there is none (or it does not answer) one node of an even number has none. The total is odd
/// then, so there is no tie. The survival table of docs/votes.md is its test.
///
/// Not dynamic, or without a voter among `present` (a forced side of nodes that have no vote):
/// every voter counts, and the witness, if there is one.
Votes votes_for(const VotingRules& rules, std::span<const NodeId> present, bool witness_answers);

}  // namespace csv::cluster
