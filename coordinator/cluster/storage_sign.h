#pragma once
#include <optional>
#include <string>

#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// What the slot of a node's mount on a volume shows, as the volume's coordinator reads it: the
/// node's heartbeat on storage (docs/votes.md). There is one only of a mount that should write.
struct StorageSign {
  NodeId node{};
  std::string volume;
  TimePoint moved{};   ///< When it was last seen to move; never: when it was first waited for.
  bool still = false;  ///< It has not moved while it was read again and again.
  /// The mount speaks with the coordinator over the network.
  bool connected = false;
  /// By the slot itself: the node's membership lease runs, so its side has a quorum.
  std::optional<bool> quorate = {};
  bool operator==(const StorageSign&) const = default;
};

/// This node's own way to a volume's LUN: a command sent at that moment has been answered.
struct Reached {
  std::string volume;
  TimePoint at{};
};

}  // namespace csv::cluster
