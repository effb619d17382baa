#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/admin/tool.h"

namespace csv::admin {

// csvctl cluster ca: the cluster's own certificate authority. It needs no csvd and no network; its
// key stays in the folder where it was made.

inline constexpr const char* kAuthorityFolder = "/etc/csvfs/ca";
inline constexpr const char* kTlsFolder = "/etc/csvfs/tls";

struct AuthorityRequest {
  std::string folder = kAuthorityFolder;
  int cluster = 0;
  int days = 3650;
};
/// A new CA: ca.key and ca.crt in the folder. Never replaces one.
ExitCode create_authority(const AuthorityRequest& request, Terminal& terminal);

struct IssueRequest {
  std::string folder = kAuthorityFolder;
  std::string out;  ///< The node's name where it is empty.
  int node = 0;
  std::string name;
  int days = 365;
  bool yes = false;  ///< Replace what is in `out`.
};
/// node.key, node.crt and ca.crt in the folder `out`.
ExitCode issue_certificate(const IssueRequest& request, Terminal& terminal);

/// What certificate files say.
ExitCode show_certificates(const std::vector<std::string>& files, bool json, Terminal& terminal);

}  // namespace csv::admin
