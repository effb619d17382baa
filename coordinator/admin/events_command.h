#pragma once
#include <optional>
#include <string>

#include "coordinator/admin/paint.h"
#include "coordinator/admin/tool.h"
#include "csvfs/base/events.h"

namespace csv::admin {

struct EventsRequest {
  std::string file = events::kFile;
  bool follow = false;
  std::string since;   ///< "10m", "18:30", "2026-01-31 18:30"; empty: everything there is.
  std::string volume;  ///< Of this one only.
  bool json = false;
};

/// `csvctl events`: what csvd and the mounts of this node have noted. Needs none of them to run.
ExitCode show_events(const EventsRequest& request, Terminal& terminal);

/// When `text` is, seen from `now`: a time span before it (s, m, h, d), a time of today, or a date
/// and time, local. Errc::refused otherwise.
Expected<WallTime> parse_since(const std::string& text, WallTime now);

/// The latest warnings and errors of the last hour, five at most, under a heading; empty where
/// there are none.
std::string lately(const std::string& file, WallTime now, const Paint& paint);

std::string event_line(const events::Event& event, const Paint& paint);
std::string event_json(const events::Event& event);  ///< One line; docs/csvctl.md has the fields.

}  // namespace csv::admin
