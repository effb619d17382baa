#pragma once
#include <memory>
#include <string>

#include "coordinator/service/volume_service.h"

namespace csv::service {

/// A file "catalog-SECONDS.db" in `folder`, which is made. It has its name only once it is whole
/// and durable; then the oldest beyond `keep` go.
Expected<std::unique_ptr<CatalogFile>> make_catalog_file(const std::string& folder, WallTime now,
                                                         std::size_t keep = 3);

}  // namespace csv::service
