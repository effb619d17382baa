#pragma once
#include <string>
#include <vector>

#include "coordinator/cluster/lease_timing.h"
#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// How fast Corosync finds that a node has gone: after `threshold` heartbeats that did not come.
/// Forming the ring without it takes as long again, and a fifth.
struct Heartbeat {
  Duration delay = 100ms;
  unsigned threshold = 10;
  bool operator==(const Heartbeat&) const = default;
};

/// Private networks, as they come; networks on which a second may pass without a sign of a node.
inline constexpr Heartbeat kLan{}, kWan{.delay = 125ms, .threshold = 10};

/// For Corosync to agree on who is left: its consensus, a fifth more than the token.
constexpr Duration consensus(const Heartbeat& heartbeat) {
  return heartbeat.delay * heartbeat.threshold * 12 / 10;
}
/// Of the change of members itself, in a healthy network.
inline constexpr Duration kSync = 200ms;
/// A node that has gone is none for the others after this, or a little more.
constexpr Duration gone_after(const Heartbeat& heartbeat) {
  return heartbeat.delay * heartbeat.threshold + consensus(heartbeat) + kSync;
}
static_assert(gone_after(kLan) < LeaseTiming{}.term && gone_after(kWan) < LeaseTiming{}.term);

/// Whether Corosync can keep them, and the change of members they lead to ends within the term of
/// a lease: else those who go on would wait for it longer than their leases run. Errc::refused says
/// the limit.
Expected<void> check_heartbeat(const Heartbeat& heartbeat, const LeaseTiming& timing = {});

/// What /etc/corosync/corosync.conf says; the same file on every node of the cluster.
struct CorosyncConf {
  struct Node {
    NodeId id{};
    std::string name;
    /// Numeric addresses, one for each link, in the order of preference: the private network's
    /// first. Every node has as many.
    std::vector<std::string> addresses;
  };
  std::string cluster;
  std::vector<Node> nodes;
  Heartbeat heartbeat;
  /// Of this file: a node does not take an older one from another.
  unsigned version = 1;
  /// After this long without a vote the quorum device has none (F1).
  Duration device_timeout = 10s;
  /// So long a change of nodes waits, everywhere, for one node's csvd to vote on it. A csvd that
  /// runs needs milliseconds.
  Duration device_sync_timeout = 2s;
  std::string log_file = "/var/log/corosync/corosync.log";
};

/// The file. Links are encrypted with /etc/corosync/authkey; of several the first that works is
/// used, and a dead one is left before a node would be lost for it. Each node has one vote, and
/// csvd, as the quorum device, as many as all other nodes together (corosync_engine.h). Refused
/// with the reason: no or too many nodes, names or numbers twice, what is no name or no address,
/// links that differ in number, times Corosync cannot keep.
Expected<std::string> render(const CorosyncConf& conf);

}  // namespace csv::cluster
