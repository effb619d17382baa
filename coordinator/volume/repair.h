#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/check.h"
#include "coordinator/volume/database.h"
#include "coordinator/volume/volume.h"

namespace csv::volume {

struct RepairOptions {
  /// Where the repaired catalog is made before anything on the LUN changes: a file that does not
  /// exist yet, on a disk with room for the whole catalog. It stays.
  std::string work_file = {};
  WallTime now{};
  /// What the catalog is made of: what is on the LUN, the newer whole copy on the LUN, or a file.
  enum class Source { catalog, copy, file } source = Source::catalog;
  std::string file = {};
  /// Only for a volume of which no superblock is left anywhere: what no other place says.
  std::string label = {};
  std::uint16_t cluster = 0;
  std::uint64_t wal_size = 64ull << 20;
};

/// The repair of a volume that nobody uses. Made by looking only: everything it will do has by then
/// been done to a catalog in a file, and checked there. docs/repair.md says what becomes of what.
class Repair {
 public:
  /// Errors where the volume cannot be read, or what is left is no catalog.
  static Expected<std::unique_ptr<Repair>> prepare(iscsi::BlockingLun& lun,
                                                   const RepairOptions& options,
                                                   const Progress& progress = {});

  /// What is wrong, a sentence each. Empty with nothing to do: the volume is clean.
  [[nodiscard]] const std::vector<std::string>& findings() const { return findings_; }
  /// What apply() does, a sentence each.
  [[nodiscard]] const std::vector<std::string>& actions() const { return actions_; }
  /// What may be missing, or be there in an older state, afterwards.
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }
  [[nodiscard]] bool has_work() const { return rewrites_superblocks_ || chunks_.has_value(); }
  [[nodiscard]] const VolumeInfo& info() const { return info_; }

  /// Writes it, and that nobody coordinates the volume. The LUN must not have been changed since
  /// prepare(): whoever calls keeps everybody else away from before prepare() on. Errc::refused,
  /// and nothing is written, if the LUN can read by now what it could not read then. An error, or a
  /// crash, leaves the old catalog in force unless the superblocks were being written; then both
  /// superblocks say what they said or what they will say. Only if the volume has no room for a
  /// second catalog is the old one overwritten: then go on with the work file as the source.
  /// `progress`: in pages of the catalog.
  Expected<void> apply(iscsi::BlockingLun& lun, const Progress& progress = {});

 private:
  Repair() = default;
  Expected<void> look_at_superblocks(iscsi::BlockingLun& lun, const RepairOptions& options);
  Expected<std::unique_ptr<Database>> start_from_catalog(iscsi::BlockingLun& lun,
                                                         const RepairOptions& options);
  Expected<std::unique_ptr<Database>> start_from_copy(iscsi::BlockingLun& lun,
                                                      const RepairOptions& options);
  Expected<void> compare_with_present(iscsi::BlockingLun& lun, const RepairOptions& options,
                                      Database& copy);
  Expected<void> make_catalog(iscsi::BlockingLun& lun, const RepairOptions& options,
                              const Progress& progress);

  VolumeInfo info_;
  std::string work_file_;
  std::vector<std::string> findings_, actions_, warnings_;
  BadBlocks unreadable_;         ///< What the new catalog had to do without.
  bool has_superblock_ = false;  ///< One is in force: nothing had to be made from what is left.
  bool rewrites_superblocks_ = false;
  bool in_place_ = false, shared_lost_ = false, log_lost_ = false;
  std::optional<std::vector<std::uint64_t>> chunks_;  ///< Where the new catalog goes.
};

/// Writes the catalog in the file at `path` to `chunks` of the volume, empties its log, and lets
/// the superblocks name them. `in_place`: the chunks are the catalog's own, so the log goes first.
Expected<void> install_catalog(iscsi::BlockingLun& lun, VolumeInfo& info, const std::string& path,
                               const std::vector<std::uint64_t>& chunks, bool in_place,
                               const Progress& progress = {});

}  // namespace csv::volume
