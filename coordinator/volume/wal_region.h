#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "coordinator/volume/volume_format.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/error.h"
#include "iscsi/blocking_lun.h"

namespace csv::volume {

/// The write-ahead log: the file SQLite sees, in memory, over a fixed region of the LUN. What
/// SQLite writes stays in memory until sync(), which sends it in few large writes. Each page also
/// has a checksum in memory, so that a frame which memory spoilt is not taken for the one written.
/// After an error the region must not be used any more.
class WalRegion {
 public:
  /// Reads as much as the log has: 1 MiB, then 16 MiB at a time in reads of 1 MiB, until frames of
  /// an older generation come.
  static Expected<WalRegion> open(iscsi::BlockingLun& lun, std::uint64_t offset,
                                  std::uint64_t size);

  /// Where the file ends; 0 for a log that was deleted.
  [[nodiscard]] std::uint64_t size() const { return size_; }
  /// How much of `out` lies before the end; the rest becomes zeros.
  Expected<std::size_t> read(std::uint64_t offset, std::span<std::byte> out);
  /// Fails beyond the region: the coordinator's budget is wrong (C1).
  Expected<void> write(std::uint64_t offset, std::span<const std::byte> data);
  void truncate(std::uint64_t size);
  /// What was written since the last sync() is past the volatile cache.
  Expected<void> sync();
  /// An empty log, durably: the next open() finds none.
  Expected<void> remove();

 private:
  WalRegion(iscsi::BlockingLun& lun, std::uint64_t offset, std::uint64_t size);
  Expected<void> load();
  void make_room(std::uint64_t size);
  [[nodiscard]] bool has_header() const;
  [[nodiscard]] bool ends_before(std::uint64_t loaded) const;
  void dirty(std::uint64_t from, std::uint64_t to);
  void forget_pages(std::uint64_t from, std::uint64_t to);

  iscsi::BlockingLun* lun_;
  std::uint64_t offset_;
  std::uint64_t capacity_;  ///< Of the region.
  std::uint64_t unit_;      ///< Writes are multiples of this: what the LUN writes whole.
  Buffer memory_;           ///< The region's start, as far as it was used.
  std::uint64_t size_ = 0;
  std::map<std::uint64_t, std::uint64_t> dirty_;  ///< From -> to; apart from each other.
  struct Sum {
    bool known = false;
    std::uint32_t crc = 0;
  };
  std::vector<Sum> pages_;  ///< Of each frame's page, once it was written or read as a frame.
};

}  // namespace csv::volume
