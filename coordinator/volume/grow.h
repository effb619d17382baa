#pragma once
#include "coordinator/volume/volume.h"

namespace csv::volume {

/// `info` of a volume whose LUN now has `lun_size` bytes: the data area reaches to the new end,
/// less the room for copy C. Errc::refused, saying why, where the LUN has not grown by a MiB at
/// least. The superblocks are written next; opening the catalog then does the rest, also after a
/// crash.
Expected<VolumeInfo> grown(VolumeInfo info, std::uint64_t lun_size);

/// grown(), the superblocks, and the catalog, of a volume that nobody serves. What it says then.
Expected<VolumeInfo> grow(iscsi::BlockingLun& lun, Random& random);

}  // namespace csv::volume
