#pragma once
#include <string>
#include <vector>

#include "coordinator/admin/paint.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/voting_membership.h"
#include "coordinator/cluster/watchdog.h"
#include "coordinator/protocol/tls_identity.h"
#include "coordinator/service/coordination.h"
#include "csvfs/base/config.h"
#include "csvfs/base/status_board.h"

namespace csv::admin {

/// What `csvctl status` is made of.
struct StatusSources {
  const Clock& clock;
  const Config& config;
  std::uint64_t incarnation = 0;
  TimePoint started{};
  const cluster::Membership& membership;
  StatusBoard& board;
  const protocol::TlsIdentity* identity = nullptr;          ///< Null: nodes speak plain text.
  std::vector<const service::Coordination*> coordinations;  ///< In the order of config.volumes.
  const cluster::VotingMembership* voting = nullptr;        ///< Null: nobody votes.
  const cluster::Watchdog::State* watchdog = nullptr;       ///< Null: none is configured.
  const cluster::QuorumLoss* loss = nullptr;  ///< What is done without a quorum; null: nothing.
};

/// As JSON; docs/csvctl.md has its fields. They are only ever added to.
std::string status_json(const StatusSources& from);

/// The same for people: what needs attention first, and aligned tables. Errc::corrupt if `json` is
/// not a status.
Expected<std::string> status_text(const std::string& json, const Paint& paint);

/// "exclusive access, all registrants" and the like; a mode's, a key role's word.
std::string_view to_text(AccessMode mode);
std::string_view to_text(KeyRole role);
std::string key_text(Key key);  ///< 16 hexadecimal digits.

}  // namespace csv::admin
