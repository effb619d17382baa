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

struct CreateRequest {
  std::string name;
  bool without_witness = false;  ///< Two nodes, and it is known what that means.
};
ExitCode create_cluster(const std::string& config_file, const std::string& socket,
                        const CreateRequest& request, Terminal& terminal);

/// `cluster start --force-quorum`: asks, unless `yes`.
ExitCode force_quorum(const std::string& socket, bool yes, Terminal& terminal);

/// `cluster status` and `node list`.
ExitCode show_cluster(const std::string& socket, bool json, Terminal& terminal);

}  // namespace csv::admin
