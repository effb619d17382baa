#pragma once
#include <string>

#include "coordinator/admin/paint.h"
#include "coordinator/admin/tool.h"

namespace csv::admin {

/// `csvctl top`: what happened between two statuses, again and again.
struct TopRequest {
  std::string socket;
  Duration interval = 2s;
  bool once = false;
  bool json = false;
};
ExitCode show_top(const TopRequest& request, Terminal& terminal);

/// What lies between two answers of csvd (status --json), `apart` from one another; docs/csvctl.md
/// has the fields. Errc::corrupt if one is not a status. A counter that began anew (its process was
/// restarted) counts from 0.
Expected<std::string> rates_json(const std::string& before, const std::string& after,
                                 Duration apart);
Expected<std::string> rates_text(const std::string& rates, const Paint& paint);

}  // namespace csv::admin
