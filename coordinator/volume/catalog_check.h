#pragma once
#include <string>

#include "coordinator/volume/check.h"
#include "coordinator/volume/volume.h"

namespace csv::volume {

/// The part of check() that is about the catalog's content. Adds to `report`; opens the store's
/// database for reading only.
Expected<void> check_catalog(CatalogStore& store, CheckReport& report, const Progress& progress);
/// The same for a catalog that lies in a file of the machine, as a copy or a repair left it: nobody
/// may change the file meanwhile.
Expected<void> check_catalog_file(const std::string& path, const VolumeInfo& info,
                                  CheckReport& report, const Progress& progress);

}  // namespace csv::volume
