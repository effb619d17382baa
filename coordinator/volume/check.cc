#include "coordinator/volume/check.h"

#include "coordinator/volume/catalog_check.h"

namespace csv::volume {

Expected<CheckReport> check(iscsi::BlockingLun& lun, const CheckProgress& progress) {
  CheckReport report;
  report.problems = CSV_TRY(superblock_problems(lun));
  auto info = CSV_TRY(read_superblocks(lun, false));
  for (auto& problem : CSV_TRY(chunk_problems(lun, info)))
    report.problems.push_back(std::move(problem));
  Random random{0};  // nothing is written, so there is no salt to choose
  auto store = CSV_TRY(open_catalog_store(lun, info, random, StoreAccess::read_only));
  CSV_TRY(check_catalog(*store, report, progress));
  // Damage is in the report; a LUN that went away says nothing about the volume.
  if (auto health = store->health(); !health && health.error() != Errc::corrupt)
    return health.error();
  return report;
}

}  // namespace csv::volume
