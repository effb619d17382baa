#pragma once
#include <string>
#include <vector>

#include "coordinator/admin/certificate_commands.h"
#include "coordinator/admin/tool.h"
#include "coordinator/protocol/join_token.h"
#include "csvfs/base/config.h"

namespace csv::admin {

struct TokenRequest {
  std::string config_file;
  std::string socket;
  std::string authority_folder = kAuthorityFolder;
  std::string corosync_folder = "/etc/corosync";
  int node = 0;  ///< What the new node will be, as all of the below.
  std::string name;
  std::string address;             ///< "address:port", numeric: where its csvd will listen.
  std::vector<std::string> links;  ///< As many as the other nodes have; none: the address.
  int minutes = 15;
  std::string at;  ///< Where to wait for it; empty: a free port of this node's address.
};
/// `cluster token`: on a node that has the CA's key. Prints a token, and waits until it has been
/// used or has run out: whoever used it has all that makes the new node, and the cluster knows it.
/// What the cluster would refuse is refused before there is a token; until its user has written all
/// down nothing has changed anywhere.
ExitCode invite_node(const TokenRequest& request, Terminal& terminal);

struct JoinRequest {
  std::string token;
  std::string config_file;
  std::string tls_folder = kTlsFolder;
  std::string corosync_folder = "/etc/corosync";
  std::string state_dir = kStateDir;
  bool yes = false;  ///< A corosync.conf of somebody else may be replaced.
};
/// `cluster join`: on the machine that is to be the node. Refused where it is a node already. All
/// files or none: what it had written when something failed is removed.
ExitCode join_cluster(const JoinRequest& request, Terminal& terminal);

/// What goes from one to the other. A value.
struct JoinBundle {
  std::string config;    ///< csvd.toml
  std::string corosync;  ///< corosync.conf
  std::string corosync_key;
  std::string authority, certificate, key;  ///< PEM
  bool operator==(const JoinBundle&) const = default;
};
std::string to_text(const JoinBundle& bundle);
/// Errc::refused unless all of it is there, and is of one node, of the cluster and of the CA that
/// the token names.
Expected<JoinBundle> parse_join_bundle(const std::string& text, const protocol::JoinToken& token);

/// csvd.toml of the node `id` of the others' `nodes`, which are as corosync.conf has them, as a
/// node like `like`. What needs a secret of its own (CHAP) is left out.
std::string config_for(NodeId id, const std::string& listen, const Config& like,
                       const std::vector<PeerConfig>& nodes);

}  // namespace csv::admin
