#pragma once
#include <string>

namespace csv {

/// Says "STATE=…" to systemd where it asked for it (sd_notify(3)): a service of Type=notify.
void notify_systemd(const std::string& state);

}  // namespace csv
