#pragma once
#include <string>

#include "coordinator/admin/admin_request.h"
#include "csvfs/base/error.h"

namespace csv::admin {

/// What is left to be done of `request`, a node_drain, volume_move, volume_stop or volume_start
/// that the cluster has accepted, by a status of csvd (`csvctl status --json`): in words for
/// people, or nothing once it is done. Drained: the node coordinates nothing, and what it
/// coordinated somebody else serves. Stopped: nobody can be at work on the volume any more. Moved,
/// or started: whom the cluster gives the volume to serves it; the named node, if one was.
/// Errc::corrupt if `status` is none, or of nodes that do not vote.
Expected<std::string> left_to_do(const std::string& status, const AdminRequest& request);

}  // namespace csv::admin
