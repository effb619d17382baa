#pragma once
#include <functional>
#include <string>
#include <vector>

#include "coordinator/volume/volume.h"

namespace csv::volume {

struct CheckReport {
  std::vector<std::string> problems;  ///< In words, each with what it is about. Empty: clean.
  std::vector<std::string> advice;    ///< What a repair could do about them, in words.
  std::uint64_t inodes = 0, entries = 0, extents = 0, used_blocks = 0, free_blocks = 0, orphans = 0;
};

/// Reads everything and changes nothing (the log is read as it is): superblocks, chunk headers,
/// SQLite's integrity check, then that every used block has exactly the owners the bitmaps say,
/// every entry an inode, link counts, directory sizes, parents, orphans, sessions' grants. Of a
/// volume without superblocks A and B what can be found without them. An error only where it could
/// not be read at all, or no trace of a volume is there.
Expected<CheckReport> check(iscsi::BlockingLun& lun, const Progress& progress = {});
/// The part of it that is about the catalog of a volume whose superblocks say `info`, its log, and
/// what is in it. Adds to `report`.
Expected<void> check_catalog_on(iscsi::BlockingLun& lun, const VolumeInfo& info,
                                CheckReport& report, const Progress& progress);

}  // namespace csv::volume
