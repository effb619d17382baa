#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "iscsi/blocking_lun.h"

namespace csv::volume {

/// The LUN answered that it cannot read what was asked for (MEDIUM ERROR, HARDWARE ERROR). That is
/// damage, as a wrong checksum is; whoever has a second copy, or can do without, goes on. Not so
/// where the way to the LUN is lost, the nexus may not use it, or it is not ready: then nobody
/// knows what is there.
bool is_bad_block(const Error& error);

/// Blocks of a LUN that it cannot read.
class BadBlocks {
 public:
  void add(std::uint64_t offset, std::uint64_t length, const Error& why);
  void add(const BadBlocks& more);
  /// Why the first of them within the range cannot be read; empty if none lies there.
  [[nodiscard]] std::string within(std::uint64_t offset, std::uint64_t length) const;
  /// Errc::refused if the LUN can read one of them by now: it was away for a moment, and the blocks
  /// are good. Other errors where it cannot be asked.
  Expected<void> check_still_bad(iscsi::BlockingLun& lun) const;

 private:
  struct Block {
    std::uint64_t offset = 0, length = 0;
    std::string why;
  };
  std::vector<Block> blocks_;
};

/// Reads all that can be read, where that is not all in pieces of 4 KiB; the rest becomes zeros and
/// is returned. Offsets and sizes are multiples of 4 KiB. Fails if the LUN cannot be asked.
Expected<BadBlocks> read_around_bad_blocks(iscsi::BlockingLun& lun,
                                           std::span<const iscsi::BlockingLun::Read> reads,
                                           int depth = 16);

}  // namespace csv::volume
