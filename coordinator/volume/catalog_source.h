#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/buffer.h"

namespace csv::volume {

/// The pages of a catalog on its LUN as far as they can be read: of the log what is whole, else
/// what the chunks have. For repair and inspection: nothing here gives up at the first bad page,
/// and nothing is written.
///
/// Of the log, transactions count up to the first damaged frame, as for SQLite: behind it lies what
/// a crash cut short. Unless what lies there can only have been written after the damaged frame was
/// durable (frames of yet later transactions): then the frame rotted, and the later ones count.
class CatalogSource {
 public:
  static Expected<std::unique_ptr<CatalogSource>> open(iscsi::BlockingLun& lun,
                                                       const VolumeInfo& info);

  /// Pages the database has; 0 if nothing says.
  [[nodiscard]] std::uint32_t page_count() const { return page_count_; }
  /// Its bytes, or nothing if it is lost; valid until the next call. Errors of the LUN end it:
  /// see health().
  std::optional<std::span<const std::byte>> page(std::uint32_t number);
  [[nodiscard]] const Expected<void>& health() const { return health_; }
  /// What is wrong with chunks, log and pages read so far, in words.
  [[nodiscard]] const std::vector<std::string>& problems() const { return problems_; }
  /// Nothing is known to be lost: SQLite would see the same pages.
  [[nodiscard]] bool log_is_whole() const { return log_whole_; }
  /// Blocks of log and pages, as far as those were asked for, that the LUN could not read.
  [[nodiscard]] const BadBlocks& unreadable() const { return unreadable_; }

 private:
  CatalogSource(iscsi::BlockingLun& lun, VolumeInfo info) : lun_{&lun}, info_{std::move(info)} {}
  Expected<void> read_log();
  Expected<std::uint64_t> newest_chunk();
  Expected<void> look_at_chunks();
  Expected<void> find_size();
  void problem(std::string text);

  iscsi::BlockingLun* lun_;
  VolumeInfo info_;
  Buffer log_;
  std::map<std::uint32_t, std::size_t> in_log_;  ///< Page to where its content lies in log_.
  std::uint32_t page_count_ = 0;
  bool log_whole_ = true, size_known_ = true;
  std::vector<std::string> problems_;
  BadBlocks unreadable_;
  Expected<void> health_;
  // The last piece read of the chunks.
  Buffer piece_;
  std::uint32_t piece_first_ = 0, piece_pages_ = 0;
};

}  // namespace csv::volume
