#pragma once
#include <string>
#include <vector>

#include "coordinator/admin/tool.h"
#include "coordinator/cluster/configuration.h"
#include "coordinator/cluster/corosync_conf.h"
#include "csvfs/base/config.h"

namespace csv::admin {

struct PrepareRequest {
  std::string config_file;
  std::string folder = "/etc/corosync";
  bool new_key = false;
  bool dry_run = false;
  bool yes = false;
};

/// `cluster prepare`: writes corosync.conf from csvd.toml, and with `new_key` an authkey. A file
/// that it has not written itself, and any key, is replaced only with `yes` or after asking; then
/// nothing at all is written. Restarts nothing.
ExitCode prepare(const PrepareRequest& request, Terminal& terminal);

/// Node and peers of a configuration as nodes of Corosync; the same on every node of the cluster.
/// Without `links` it is one link, on the address of `listen`.
cluster::CorosyncConf corosync_of(const Config& config);

/// What the cluster has decided since csvd.toml was written: the heartbeats, and who its nodes are;
/// those that it does not have are taken out, and named. `node` knows nothing of the others if the
/// cluster does not have it itself.
std::vector<std::string> apply(const cluster::Configuration& decided, NodeId node,
                               cluster::CorosyncConf& conf);

/// Whether a corosync.conf comes from render().
bool written_by_csvfs(const std::string& conf);

/// `made` with the version that it needs where `there` is in use: a higher one, if they differ in
/// anything else; `there` itself, if not. Errc::refused as of render().
Expected<std::string> render_after(cluster::CorosyncConf made, const std::string& there);

}  // namespace csv::admin
