#pragma once
#include <cstdint>
#include <string>

#include "coordinator/admin/tool.h"
#include "coordinator/volume/check.h"

namespace csv::admin {

// The commands of csvctl that take a LUN or talk to csvd. Each says on the terminal what it did or
// why not, and answers how the program ends.

struct LunChoice {
  std::string url;
  iscsi::LunOptions options;
};

struct FormatRequest {
  LunChoice lun;
  std::string name;
  std::uint16_t cluster = 0;
  bool yes = false;
};
ExitCode format_volume(const FormatRequest& request, Terminal& terminal);
ExitCode check_volume(const LunChoice& lun, bool json, Terminal& terminal);
/// Says on the terminal who may be using the volume on `lun`, which is read under `mine`.
Expected<void> tell_of_users(iscsi::BlockingLun& lun, Key mine, Terminal& terminal);
/// What a check found, and how it ends.
ExitCode tell_check(const volume::CheckReport& report, bool json, Terminal& terminal);
ExitCode show_reservation(const LunChoice& lun, bool json, Terminal& terminal);
/// Asks, unless `yes`. Refused with ExitCode::not_confirmed while the LUN says that somebody may be
/// using it (service::look_for_users), unless it is `despite_users`.
struct ClearRequest {
  LunChoice lun;
  bool yes = false;
  bool despite_users = false;
};
ExitCode clear_reservation(const ClearRequest& request, Terminal& terminal);

ExitCode show_status(const std::string& socket, bool json, Terminal& terminal);
/// Where nodes vote the cluster decides, and these wait until it has come about.
ExitCode start_volume(const std::string& socket, const std::string& volume, Terminal& terminal);
ExitCode stop_volume(const std::string& socket, const std::string& volume, Terminal& terminal);

}  // namespace csv::admin
