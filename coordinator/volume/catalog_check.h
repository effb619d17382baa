#pragma once
#include "coordinator/volume/check.h"
#include "coordinator/volume/volume.h"

namespace csv::volume {

/// The part of check() that is about the catalog's content. Adds to `report`; opens the store's
/// database for reading only.
Expected<void> check_catalog(CatalogStore& store, CheckReport& report,
                             const CheckProgress& progress);

}  // namespace csv::volume
