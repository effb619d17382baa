#pragma once
#include <string>

namespace csv {

/// Says "STATE=…" to systemd where it asked for it (sd_notify(3)): a service of Type=notify.
void notify_systemd(const std::string& state);

/// Whether a descriptor is the stream to the journal that systemd gave us ($JOURNAL_STREAM): what
/// goes there has its time, and its priority from a prefix (sd-daemon(3)). It may have been
/// redirected since.
bool leads_to_journal(int descriptor);

}  // namespace csv
