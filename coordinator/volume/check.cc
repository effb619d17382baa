#include "coordinator/volume/check.h"

#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/catalog_source.h"

namespace csv::volume {

Expected<CheckReport> check(iscsi::BlockingLun& lun, const CheckProgress& progress) {
  CheckReport report;
  report.problems = CSV_TRY(superblock_problems(lun));
  auto info = CSV_TRY(read_superblocks(lun, false));
  for (auto& problem : CSV_TRY(chunk_problems(lun, info)))
    report.problems.push_back(std::move(problem));
  CSV_TRY(check_catalog_on(lun, info, report, progress));
  return report;
}

Expected<void> check_catalog_on(iscsi::BlockingLun& lun, const VolumeInfo& info,
                                CheckReport& report, const CheckProgress& progress) {
  {
    // SQLite takes a log that is damaged in its middle for one that ends there.
    auto source = CSV_TRY(CatalogSource::open(lun, info));
    if (!source->log_is_whole())
      for (const auto& problem : source->problems())
        if (problem.find("the log") == 0) report.problems.push_back(problem);
  }
  Random random{0};  // nothing is written, so there is no salt to choose
  auto store = open_catalog_store(lun, info, random, StoreAccess::read_only);
  if (!store && store.error() == Errc::corrupt) {
    report.problems.push_back("the catalog cannot be opened: " + store.error().message());
    return {};
  }
  if (!store) return store.error();
  CSV_TRY(check_catalog(**store, report, progress));
  // Damage is in the report; a LUN that went away says nothing about the volume.
  if (auto health = (*store)->health(); !health && health.error() != Errc::corrupt)
    return health.error();
  return {};
}

}  // namespace csv::volume
