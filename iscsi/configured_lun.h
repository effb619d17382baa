#pragma once
#include "csvfs/base/config.h"
#include "iscsi/open_lun.h"

namespace csv::iscsi {

/// How this node reaches the LUN of a configured volume: open_lun() with the initiator's name, the
/// number of sessions, CHAP, digests and the word about the cache from the configuration. What the
/// opening part says of its ISIDs (LunOptions::isid_seed, fixed for a process's role) is made
/// distinct by volume: two volumes may lie behind one target, where equal ISIDs would log each
/// other out. The secret is read at each opening, so that it can be changed. `home` must outlive
/// it.
LunOpener configured_opener(AsioLoop& home, const Config& config, const VolumeConfig& volume);

}  // namespace csv::iscsi
