#pragma once
#include <optional>
#include <string>
#include <vector>

#include "coordinator/cluster/configuration.h"

namespace csv::cluster {

/// How the votes of a cluster stand just now, as one node sees it.
struct Standing {
  bool formed = false;                  ///< It goes on.
  std::vector<NodeId> members;          ///< Whose csvd takes part; sorted. None: no engine.
  bool witness_held = false;            ///< This side holds the witness.
  std::optional<bool> witness_answers;  ///< Unknown where another node does the asking.
  std::vector<NodeId> prevents;         ///< Members told to bring no cluster about; sorted.
};

/// Of the votes in force, with the witness's where it counts: how many are here, and how many make
/// a majority.
unsigned votes_present(const Configuration& configuration, const Standing& standing);
unsigned votes_needed(const Configuration& configuration);

/// Why a node's vote does not count just now; empty: it does, or the node is none of the cluster's.
std::string vote_reason(const Configuration& configuration, const Standing& standing, NodeId node);

/// Something an administrator should see to.
struct Advice {
  std::string subject;  ///< "quorum", "witness", or the name of a node or volume.
  std::string text;     ///< What it is, and what to do.
  bool operator==(const Advice&) const = default;
};
/// Without a quorum what would be needed; with one what would be its end, and what was left behind
/// by maintenance. Absent nodes are not listed: everybody shows those. Pure.
std::vector<Advice> advice(const Configuration& configuration, const Standing& standing);

/// "node2" of the configuration, else "node 2".
std::string name_of(const Configuration& configuration, NodeId node);

}  // namespace csv::cluster
