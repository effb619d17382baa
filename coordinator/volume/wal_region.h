#pragma once
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/volume/log_chain.h"
#include "coordinator/volume/volume.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/error.h"
#include "csvfs/base/untouched_buffer.h"
#include "iscsi/blocking_lun.h"

namespace csv::volume {

/// The last block of the log's region: see disk::LogMark. Salts 0 for no log.
std::uint64_t place_of_log_mark(const VolumeInfo& info);
Buffer encode_log_mark(const VolumeId& volume, const LogSalts& salts, std::uint64_t frames,
                       std::uint64_t retired = 0);
/// Nothing if it is none of this volume; Errc::corrupt for a damaged one.
Expected<std::optional<disk::LogMark>> decode_log_mark(std::span<const std::byte> bytes,
                                                       const VolumeId& volume);

/// Errc::corrupt if a repair that replaces the catalog was interrupted, so that nobody may open it
/// until the repair is done again: to be asked before superblocks are rewritten for it.
Expected<void> check_repair_ended(iscsi::BlockingLun& lun, const VolumeInfo& info);

/// The write-ahead log: the file SQLite sees, in memory, over a fixed region of the LUN. What
/// SQLite writes stays in memory until sync(), which sends it in few large writes. Each page also
/// has a checksum in memory, so that a frame which memory spoilt is not taken for the one written.
/// After an error the region must not be used any more.
///
/// SQLite ends a log at its first frame that is not whole. That is right where the last transaction
/// was under way when its writer died, and wrong where a frame rotted that others lean on. So each
/// sync() writes a mark beside its frames, which says how many were durable before.
class WalRegion {
 public:
  /// Reads as much as the log has: 1 MiB, then as much again each time, 16 MiB at most, in reads of
  /// 1 MiB, until a frame comes that is not whole. Errc::corrupt if that is before the mark, with
  /// where it is.
  static Expected<WalRegion> open(iscsi::BlockingLun& lun, const VolumeInfo& info);
  /// What open() found is past the volatile cache from here on, so that it can be leaned on. For
  /// who alone may write the volume.
  Expected<void> settle();
  /// Makes the volume's log an empty one, whatever is there, durably.
  static Expected<void> clear(iscsi::BlockingLun& lun, const VolumeInfo& info);
  /// Says that the log is of no use to a catalog whose chunk headers have `sequence` or more, for
  /// who replaces the catalog below it: nobody can open it until clear(), whatever crashes
  /// meanwhile.
  static Expected<void> retire(iscsi::BlockingLun& lun, const VolumeInfo& info,
                               std::uint64_t sequence);

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
  WalRegion(iscsi::BlockingLun& lun, const VolumeInfo& info);
  Expected<void> load();
  [[nodiscard]] Expected<void> judge(std::uint64_t loaded) const;
  [[nodiscard]] bool has_header() const;
  void follow(std::uint64_t loaded);
  Expected<void> read_mark();
  Expected<void> write(const std::vector<iscsi::BlockingLun::Write>& writes);
  void dirty(std::uint64_t from, std::uint64_t to);
  void forget_pages(std::uint64_t from, std::uint64_t to);

  iscsi::BlockingLun* lun_;
  VolumeId volume_;
  std::uint64_t offset_;
  std::uint64_t capacity_;  ///< Of the region, without the mark.
  std::uint64_t unit_;      ///< Writes are multiples of this: what the LUN writes whole.
  UntouchedBuffer memory_;  ///< The region.
  std::uint64_t size_ = 0;
  std::map<std::uint64_t, std::uint64_t> dirty_;  ///< From -> to; apart from each other.
  struct Sum {
    bool known = false;
    std::uint32_t crc = 0;
  };
  std::vector<Sum> pages_;  ///< Of each frame's page, once it was written or read as a frame.

  // How far the log that was found goes, as SQLite's recovery sees it.
  std::optional<LogHeader> header_;
  LogSum sum_{};             ///< Of the last frame that is whole.
  std::uint64_t whole_ = 0;  ///< Frames, from the first, that are whole.
  std::uint64_t end_ = 0;    ///< Of those, up to where the last whole transaction ends.
  bool broken_ = false;      ///< The frame behind them was read, and is not.

  /// The mark on the LUN; salts 0 for none.
  LogSalts marked_{};
  std::uint64_t marked_frames_ = 0;
  bool retired_ = false;
  /// The lowest frame that was written since the last sync(): all below it is durable.
  static constexpr auto kNone = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t lowest_ = kNone;
};

}  // namespace csv::volume
