#pragma once
#include <functional>
#include <string>
#include <vector>

#include "coordinator/cluster/replica.h"
#include "csvfs/base/task.h"

namespace csv::cluster {

/// A node that leaves its cluster for good, as itself sees it.
struct Leaver {
  Loop* loop = nullptr;
  Replica* replica = nullptr;
  NodeId node{};
  Signal* changed = nullptr;  ///< Notified when the replica has changed, or `serving` may have.
  std::function<std::vector<std::string>()> mounted;  ///< The volumes that are mounted on it.
  std::function<std::vector<std::string>()> serving;  ///< Those that it still coordinates.
  Duration patience = 10s;  ///< For each change of the configuration to be in force.
  Duration handover = 20s;  ///< For others to have the votes and the volumes.
};

/// First it gives its vote and its volumes away, then it is taken out, so that those who stay lose
/// neither their quorum nor a volume; each step is a change of the configuration. Done: the cluster
/// does not know it any more. It must outlive the task, as must all that it names.
///
/// Errc::refused: it is no node of a cluster, or the last one; a volume is mounted on it; or the
/// others would have no quorum without it, or cannot take a volume. Then it is in the cluster as it
/// was before. Errc::retry: there is no quorum, or none any more: it may be drained and without
/// a vote then, which is said.
Task<Expected<void>> leave(Leaver with);

}  // namespace csv::cluster
