#pragma once
#include <memory>
#include <string>
#include <vector>

#include "coordinator/volume/catalog_source.h"
#include "coordinator/volume/database.h"

namespace csv::volume {

/// An empty catalog database with today's tables, in a new file at `path`.
Expected<std::unique_ptr<Database>> create_catalog_file(const std::string& path);

struct Salvage {
  std::uint64_t rows = 0;
  /// What could not be read or not be put in, in words. Empty: every row is there.
  std::vector<std::string> losses;
  /// Files may share blocks, and rows that say which are missing.
  bool shared_lost = false;
};
/// Puts every row that can be read from `source` into the empty tables of `into`: page by page,
/// whatever SQLite would say to them. Of two rows with one key the first counts. Rows of leaves
/// that hang in no tree are taken where their shape says which table they are of, and only if rows
/// of trees are lost at all. Errc::refused where the catalog has a schema we do not know.
Expected<Salvage> salvage_catalog(CatalogSource& source, Database& into);

}  // namespace csv::volume
