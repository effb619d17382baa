#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/cluster/corosync_conf.h"
#include "coordinator/cluster/votes.h"
#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"

namespace csv::cluster {

enum class NodeState : std::uint8_t {
  member,   ///< Takes part.
  drained,  ///< Takes part, and is given no volume to coordinate (maintenance).
};
struct NodeRecord {
  std::string name;
  std::string address;  ///< "address:port", numeric: where its csvd listens.
  NodeState state = NodeState::member;
  bool votes = true;  ///< As the administrator said; what counts now is in the ballot.
  /// By command: it coordinates nothing, and no mount of it is let onto a volume.
  bool fenced = false;
  std::uint64_t fences = 0;  ///< How often; what was proven of one fence says nothing of another.
  /// Numeric addresses of its Corosync, the private network's first; none: csvd.toml has them.
  std::vector<std::string> links = {};
  bool operator==(const NodeRecord&) const = default;
};

enum class WitnessKind : std::uint8_t { none, disk, share };
struct WitnessRecord {
  WitnessKind kind = WitnessKind::none;
  std::string place;  ///< disk: a LUN as in iscsi/lun.h; share: a folder that every node mounts.
  bool only = false;  ///< *Disk only*: it outweighs all nodes.
  /// What was written there when it was made a witness: another one, or an emptied one, remembers
  /// nothing that this cluster may count on. Empty: made so by a version that did not note it.
  std::string id = {};
  bool operator==(const WitnessRecord&) const = default;
};

/// How a node's silence is found out: a heartbeat every `delay_ms`, `threshold` of them missed.
struct HeartbeatSettings {
  std::uint32_t delay_ms = 100;
  std::uint32_t threshold = 10;
  std::vector<std::string> isolation_addresses;  ///< Pinged when the network heartbeats are gone.
  bool operator==(const HeartbeatSettings&) const = default;
};

struct VolumeRecord {
  NodeId coordinator{};             ///< Who shall coordinate it; NodeId{}: nobody can for now.
  std::optional<NodeId> preferred;  ///< By command; it goes back there when it can.
  /// Which decision this is: grows with every change of `coordinator`.
  std::uint64_t turn = 0;
  /// By command: out of service, so `coordinator` is nobody.
  bool stopped = false;
  bool operator==(const VolumeRecord&) const = default;
};

struct Policies {
  bool dynamic_quorum = true;
  std::uint32_t hold_s = 60;  ///< A volume that was moved to balance is not moved again for this.
  bool operator==(const Policies&) const = default;
};

/// What all nodes agree on. A value; replicated as a whole (replica.h), kept on every node's disk
/// and, with a disk witness, there too.
struct Configuration {
  ClusterTag tag;
  std::uint16_t cluster = 0;
  std::string name;
  std::map<NodeId, NodeRecord> nodes;
  /// NodeRecord::fences of the nodes that it does not have, and so of the next one that is added:
  /// more than any that was taken out had, for being taken out counts as a fence.
  std::uint64_t fences_of_others = 0;
  std::map<std::string, VolumeRecord> volumes;
  WitnessRecord witness;
  HeartbeatSettings heartbeat;
  Policies policies;
  Ballot ballot;
  bool operator==(const Configuration&) const = default;
};

/// Bytes and back. decode: Errc::corrupt (or the like) for whatever is not a whole, sane
/// configuration; also of a newer format, which it says.
std::string encode(const Configuration& configuration);
Expected<Configuration> decode(std::string_view bytes);

/// Whether it can be what a cluster runs by: names and addresses sane and distinct, 1 to 63 nodes,
/// a voter at least, heartbeats within their bounds. Errc::refused says what is wrong.
Expected<void> validate(const Configuration& configuration);

/// Errc::refused with the limit where Corosync or leases cannot keep them (check_heartbeat()). What
/// an earlier version has stored may be such: then heartbeat_of() has the usual ones.
Expected<void> set_heartbeat(Configuration& configuration, std::uint32_t delay_ms,
                             std::uint32_t threshold);
Heartbeat heartbeat_of(const HeartbeatSettings& settings);

/// The node belongs to the cluster no more: what it coordinated is nobody's for now.
void take_out(Configuration& configuration, NodeId node);

/// How often the node has been shut out by command, whether it belongs to the cluster or not.
std::uint64_t fences_of(const Configuration& configuration, NodeId node);

/// Out of service, or back: then somebody is to be found for it.
void set_stopped(VolumeRecord& volume, bool stopped);

/// Errc::refused where there is another one: the vote that a witness has is that of the one that
/// all know, so it goes before another comes.
Expected<void> set_witness(Configuration& configuration, const WitnessRecord& witness);

VotingRules voting_rules(const Configuration& configuration);

}  // namespace csv::cluster
