#pragma once
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/storage_sign.h"
#include "coordinator/cluster/verdict.h"

namespace csv::cluster {

/// What is thought of the other nodes: the signals of each, brought together until they say
/// something, and the verdict on them (judge()), with since when it holds. It decides nothing: who
/// is a member the engine says, and what is fenced the takeover.
///
/// A verdict on a node whose network heartbeat is gone needs its slots, which take seconds to be
/// seen standing still, and a ping. Until then what was thought before still is. Once it is made
/// it stays when there is nothing left to be seen (a fenced node has no slot that should move).
///
/// A state machine without clock or network. Calls are told the time.
class NodeWatch {
 public:
  struct Seen {
    bool network = false;  ///< Among View.nodes.
    bool service = false;  ///< Among View.members.
    bool our_side_quorate = false;
    bool lease_over = false;              ///< As in Signals.
    std::vector<StorageSign> signs = {};  ///< Of this node, by whoever coordinates.
  };
  struct Opinion {
    Verdict verdict;
    TimePoint since{};  ///< Of the finding.
  };
  struct Change {
    Finding before{};
    bool first = false;  ///< Nothing was thought of it before.
  };
  /// A slot is written each second: one that moved so long after the network heartbeat was gone was
  /// written after that.
  static constexpr Duration kInFlight = 1500ms;
  /// So long what was thought before stays, at most, while nothing is known yet.
  static constexpr Duration kSettle = 8s;

  /// The finding is another one than before.
  std::optional<Change> see(NodeId node, const Seen& seen, TimePoint now);
  /// Whether it is to be pinged now: its network heartbeat is gone, and it has not been asked. True
  /// once; the answer goes to answered().
  bool to_be_pinged(NodeId node, TimePoint now);
  void answered(NodeId node, bool ping);
  /// This node sees nobody any more, or the others are no nodes of the cluster.
  void forget_all_but(const std::set<NodeId>& nodes);

  /// Null: nothing is thought of it yet.
  [[nodiscard]] const Opinion* of(NodeId node) const;

 private:
  struct Watched {
    std::optional<Opinion> opinion;
    std::optional<TimePoint> gone_at;   ///< When its network heartbeat was first missed.
    std::optional<TimePoint> asked_at;  ///< When it was pinged.
    std::optional<bool> ping;
    bool decided = false;  ///< In this absence.
  };
  static constexpr Duration kPingAgain = 10s;

  std::map<NodeId, Watched> watched_;
};

}  // namespace csv::cluster
