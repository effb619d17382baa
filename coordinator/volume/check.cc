#include "coordinator/volume/check.h"

#include <optional>

#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/catalog_source.h"
#include "coordinator/volume/superblock_search.h"
#include "csvfs/base/log.h"

namespace csv::volume {

namespace {

/// What superblocks A and B say; where they say nothing, what a repair would make of them. Nothing:
/// that is not enough to look any further.
Expected<std::optional<VolumeInfo>> find_volume(iscsi::BlockingLun& lun, CheckReport& report) {
  auto info = read_superblocks(lun, false);
  if (info) {
    report.problems = CSV_TRY(superblock_problems(lun));
    return std::optional{*std::move(info)};
  }
  auto copies = CSV_TRY(read_superblock_copies(lun));
  auto in_force = superblock_in_force(lun, copies);
  if (in_force) return info.error();  // something else is wrong with it
  for (const auto* each : {&copies.a, &copies.b})
    if (each->state == FoundSuperblock::State::newer) return info.error();
  auto left = find_superblock_left(lun, copies, {});
  if (left && !*left) return info.error();
  report.problems.push_back(info.error().message());
  if (!left && left.error() != Errc::refused) return left.error();
  report.advice.push_back(left ? fmt::format("--repair makes superblocks of volume {} anew, from "
                                             "{}",
                                             (*left)->info.label, (*left)->source)
                               : "--repair: " + left.error().message());
  if (!left) return std::optional<VolumeInfo>{};
  return std::optional{std::move((*left)->info)};
}

Expected<void> advise(iscsi::BlockingLun& lun, const VolumeInfo& info, CheckReport& report) {
  auto copies = CSV_TRY(find_copies(lun, info.id, info.data_offset, kGroupSize));
  for (const auto& copy : copies)
    report.advice.push_back(
        in_words(copy) +
        ", is on the LUN: --repair --from copy, if a repair of what is there would lose too much");
  return {};
}

}  // namespace

Expected<CheckReport> check(iscsi::BlockingLun& lun, const Progress& progress) {
  CheckReport report;
  auto info = CSV_TRY(find_volume(lun, report));
  if (!info) return report;
  for (auto& problem : CSV_TRY(chunk_problems(lun, *info)))
    report.problems.push_back(std::move(problem));
  CSV_TRY(check_catalog_on(lun, *info, report, progress));
  if (!report.problems.empty()) CSV_TRY(advise(lun, *info, report));
  return report;
}

Expected<void> check_catalog_on(iscsi::BlockingLun& lun, const VolumeInfo& info,
                                CheckReport& report, const Progress& progress) {
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
