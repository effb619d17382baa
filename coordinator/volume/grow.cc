#include "coordinator/volume/grow.h"

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume_format.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/log.h"

namespace csv::volume {

Expected<VolumeInfo> grown(VolumeInfo info, std::uint64_t lun_size) {
  auto end = (lun_size - disk::kTailSize) / kRegionAlignment * kRegionAlignment;
  if (lun_size <= info.lun_size || end <= info.data_offset + info.data_size)
    return Error{Errc::refused,
                 fmt::format("volume {} has all of its LUN: {} bytes, and the LUN has {}. Enlarge "
                             "it at the target first, and let this node see its new size",
                             info.label, info.lun_size, lun_size)};
  info.lun_size = lun_size;
  info.data_size = end - info.data_offset;
  return info;
}

Expected<void> claim_end(iscsi::BlockingLun& lun, const VolumeInfo& info, std::uint64_t lun_size) {
  auto block = encode_superblock(info, Copy::c);
  auto wrote = lun.write(place_of(Copy::c, lun_size), block.span());
  if (wrote) wrote = lun.flush();
  if (!wrote) return wrote.error().within("claiming the volume's new end");
  return {};
}

Expected<VolumeInfo> grow(iscsi::BlockingLun& lun, Random& random) {
  auto info = CSV_TRY(read_superblocks(lun, true));
  CSV_TRY(check_repair_ended(lun, info));
  auto next = CSV_TRY(grown(info, lun.lun().geometry().size_bytes()));
  CSV_TRY(claim_end(lun, info, next.lun_size));
  CSV_TRY(write_superblocks(lun, next));
  auto store = CSV_TRY(open_catalog_store(lun, next, random));
  auto catalog = CSV_TRY(Catalog::open(*store));
  CSV_TRY(catalog->checkpoint());
  return next;
}

}  // namespace csv::volume
