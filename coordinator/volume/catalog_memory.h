#pragma once
#include <cstdint>
#include <memory>

#include "coordinator/volume/catalog.h"

namespace csv::volume {

/// Catalog::open, with about so many bytes of the database kept in memory in place of 128 MiB.
/// (A transaction that changes more keeps more, until its end.)
Expected<std::unique_ptr<Catalog>> open_catalog(CatalogStore& store, std::uint64_t page_cache);

}  // namespace csv::volume
