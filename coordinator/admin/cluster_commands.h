#pragma once
#include <string>

#include "coordinator/admin/admin_request.h"
#include "coordinator/admin/tool.h"

namespace csv::admin {

/// csvctl cluster …, node … and volume move: what a word of the administrator makes of the cluster.
/// Each asks the csvd of this node, which asks the others.

/// Sends `request`; says `done` when it is in force.
ExitCode change_cluster(const std::string& socket, const AdminRequest& request,
                        const std::string& done, Terminal& terminal);

/// `node drain` and `volume move`: the same, and done once it has come about (left_to_do), or
/// ExitCode::failed with the reason if that takes longer than `patience`; it then stays as asked
/// for. Zero: not waited for.
ExitCode change_and_wait(const std::string& socket, const AdminRequest& request,
                         const std::string& done, Duration patience, Terminal& terminal);

/// The second half of that alone, of what the cluster has accepted.
ExitCode wait_until_settled(const std::string& socket, const AdminRequest& request,
                            const std::string& done, Duration patience, Terminal& terminal);

struct CreateRequest {
  std::string name;
  bool without_witness = false;  ///< Two nodes, and it is known what that means.
};
ExitCode create_cluster(const std::string& config_file, const std::string& socket,
                        const CreateRequest& request, Terminal& terminal);

/// `cluster start --force-quorum`: asks, unless `yes`.
ExitCode force_quorum(const std::string& socket, bool yes, Terminal& terminal);

/// `cluster leave`: asks, unless `yes`. This node's vote and volumes go to the others, then they
/// know it no more, and corosync.conf (if csvctl wrote it) and the key that admits to the others'
/// Corosync are removed from `corosync_folder`.
struct LeaveRequest {
  std::string config_file;
  std::string corosync_folder = "/etc/corosync";
  bool yes = false;
};
ExitCode leave_cluster(const std::string& socket, const LeaveRequest& request, Terminal& terminal);

/// `cluster start --prevent-quorum` and, with `prevents` false, `cluster start`: whether this node
/// may bring a cluster about (cluster::Replica::prevent). Where its csvd does not run, the word is
/// left in its folder for the next one.
ExitCode prevent_quorum(const std::string& config_file, const std::string& socket, bool prevents,
                        Terminal& terminal);

/// `node evict`: a node that takes part is only taken out with `yes`.
ExitCode evict_node(const std::string& socket, const std::string& node, bool yes,
                    Terminal& terminal);

/// `node fence`: asks, unless `yes`; done once nothing of the node is left on any volume's LUN,
/// which is an error if it takes longer than a minute (the node stays fenced).
ExitCode fence_node(const std::string& socket, const std::string& node, bool yes,
                    Terminal& terminal);

/// `cluster config export`: to the standard output without `file`. An existing file is replaced
/// only with `yes`, or after asking.
ExitCode export_configuration(const std::string& socket, const std::string& file, bool yes,
                              Terminal& terminal);

struct ImportRequest {
  std::string file;
  bool dry_run = false;
  bool yes = false;
};
/// `cluster config import`: shows what would change, asks, and has it changed.
ExitCode import_configuration(const std::string& socket, const ImportRequest& request,
                              Terminal& terminal);

/// `cluster status` and `node list`.
ExitCode show_cluster(const std::string& socket, bool json, Terminal& terminal);

}  // namespace csv::admin
