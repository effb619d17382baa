#pragma once
#include "coordinator/volume/volume.h"

namespace csv::volume {

/// `info` of a volume whose LUN now has `lun_size` bytes: the data area reaches to the new end,
/// less the room for copy C. Errc::refused, saying why, where the LUN has not grown by a MiB at
/// least. The superblocks are written next; opening the catalog then does the rest, also after a
/// crash.
Expected<VolumeInfo> grown(VolumeInfo info, std::uint64_t lun_size);

/// Puts copy C of the superblocks in force where it belongs on a LUN of `lun_size` bytes, before
/// they say that size: what a thin LUN without space refuses there must refuse the growth, and not
/// every rewrite after it.
Expected<void> claim_end(iscsi::BlockingLun& lun, const VolumeInfo& info, std::uint64_t lun_size);

/// grown(), the superblocks, and the catalog, of a volume that nobody serves. What it says then.
Expected<VolumeInfo> grow(iscsi::BlockingLun& lun, Random& random);

}  // namespace csv::volume
