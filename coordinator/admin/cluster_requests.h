#pragma once
#include <functional>
#include <optional>

#include "coordinator/admin/admin_request.h"
#include "coordinator/cluster/advice.h"
#include "coordinator/cluster/voting_membership.h"
#include "csvfs/base/config.h"

namespace csv::admin {

/// A fence is proven within this, or it is said that it is not: takeovers of what the node
/// coordinated, and a look at each LUN's keys.
constexpr Duration kProofPatience = 60s;

/// By its name or number; the error names the nodes that there are.
Expected<NodeId> find_node(const cluster::Configuration& in, const std::string& text);

/// Whether a command changes the cluster's configuration: change_for() knows it.
bool changes_cluster(const std::string& command);

/// What a command makes of the configuration:
///
///   node_vote      node, value: 0 or 1
///   node_drain, node_resume, node_evict    node
///   node_fence, node_unfence               node
///   node_add       node: its number; value: "name=NAME address=ADDRESS:PORT links=ADDRESS,…"
///   volume_move    volume, node: where it goes, and where it goes back to; "": anywhere
///   volume_stop    volume: out of service, nobody coordinates it
///   volume_start   volume, node: back into service; of one that is in it, as volume_move
///   volume_forget  volume: it belongs to the cluster no more
///   heartbeat      value: "delay=MS threshold=N", either alone, or "preset=lan", "preset=wan"
///   witness        value: "none", "disk:LUN", "share:FOLDER", "only disk:LUN": it decides alone
///   policy         value: "dynamic_quorum=on" or "off", "hold=SECONDS"
///   config_import  value: a configuration as cluster/configuration_text.h has it
///
/// Errc::refused for words that make no sense. The change itself refuses what the configuration in
/// force does not know (a node, a volume).
Expected<cluster::Replica::Change> change_for(const AdminRequest& request);
/// The witness that such a command sets; nullopt: it sets none, or is another command.
std::optional<cluster::WitnessRecord> witness_named(const AdminRequest& request);

/// Errc::refused for a volume_move to a node, or a volume_start that is one, which says of itself
/// that it cannot coordinate the volume (`unable`): it would be undone at once, and the volume
/// closed and opened for nothing. Where the volume is already, or names make no sense, which the
/// change says, and all other commands: nothing is refused.
Expected<void> may_take(const AdminRequest& request, const cluster::Configuration& now,
                        const std::function<bool(NodeId)>& unable);

/// Whether a command only looks at the configuration: answer_about() knows it.
bool asks_cluster(const std::string& command);

/// The answer to
///
///   config_export   {"ok": true, "text": the configuration as TOML}
///   config_preview  value as of config_import: {"ok": true, "changes": [what it would change]}
///
/// Errc::refused where there is no configuration (null), or the value makes no sense.
Expected<std::string> answer_about(const AdminRequest& request,
                                   const cluster::Configuration* configuration);

/// The first configuration of a cluster: this node, the peers and the volumes that it has
/// configured.
cluster::Configuration first_configuration(const Config& config, const std::string& name);

/// The cluster as `node` sees it, as JSON text; docs/csvctl.md has the fields, which are always all
/// there.
std::string cluster_json(const cluster::VotingMembership& membership, NodeId node,
                         const Clock& clock, const cluster::QuorumLoss* loss);

/// How the votes stand, as the replica sees it.
cluster::Standing standing_of(const cluster::Replica& replica, TimePoint now);

}  // namespace csv::admin
