#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/volume/database.h"
#include "coordinator/volume/volume.h"

namespace csv::volume {

struct CatalogRepairOptions {
  std::int64_t now = 0;
  /// The catalog is older than the volume: numbers go on far above whatever may have been given out
  /// since.
  bool from_copy = false;
  /// Transactions may be lost with the log: numbers do so then, too. Their rows are there, as they
  /// were before it.
  bool log_lost = false;
  /// Files may share blocks, and rows that say which are missing: what several extents name is
  /// taken for a clone wherever it can be one.
  bool shared_lost = false;
};

/// What was done to a catalog, a sentence each.
struct CatalogRepair {
  std::vector<std::string> actions;
  std::uint64_t more = 0;  ///< Beyond those that are told.
};

/// Makes a catalog in a file consistent, whatever its rows say, in one transaction; docs/repair.md
/// has the outcome for each kind of damage. Nothing of the volume is used by anybody meanwhile, so
/// sessions and what they held are dropped, and what was being freed is free. `info` has the
/// geometry, and in its chunks where the catalog lay: no file keeps blocks there.
///
/// Bitmaps, totals and the list of chunks are not its business: lay_out_space().
Expected<CatalogRepair> repair_catalog(Database& database, const VolumeInfo& info,
                                       const CatalogRepairOptions& options);

/// Decides where the chunks of a catalog in a file go on its volume and writes its bitmaps, totals
/// and chunk list accordingly: the last thing before install_catalog(). `apart`: in groups that
/// neither files, copies, nor the chunks of `info` use; false where there are not enough of those.
/// Otherwise over info's chunks, and in further free groups if it needs more. The places.
struct SpaceLayout {
  std::vector<std::uint64_t> chunks;
  std::vector<std::string> actions;
};
Expected<std::optional<SpaceLayout>> lay_out_space(Database& database, const VolumeInfo& info,
                                                   bool apart);

}  // namespace csv::volume
