#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/volume/superblock.h"

// For volumes whose superblocks A and B cannot be used. Nothing here writes.

namespace csv::volume {

/// Catalog chunks by what their own headers say: for each number the place with the highest
/// sequence, if `volume` says so only of that volume. `first`, `step`: where chunks may begin.
struct FoundChunks {
  VolumeId volume{};
  std::vector<std::uint64_t> places;  ///< By number, up to the first gap.
  std::uint64_t sequence = 0;         ///< The highest.
};
Expected<std::optional<FoundChunks>> find_chunks(iscsi::BlockingLun& lun,
                                                 const std::optional<VolumeId>& volume,
                                                 std::uint64_t first, std::uint64_t step);

/// What nothing but superblocks says.
struct Unsaid {
  std::string label = {};
  std::uint16_t cluster = 0;
  std::uint64_t wal_size = 64ull << 20;
  WallTime now{};
};

/// What A and B can be made from.
struct SuperblockLeft {
  VolumeInfo info;
  std::string source;  ///< In words: "superblock C, sequence 7".
};
/// The best there is: a superblock whose chunks are there, one that lies with a copy of the
/// catalog, the headers of chunks and what `unsaid` adds to them; Errc::refused with what to say if
/// that is not enough. Nothing: no trace of a volume is left.
Expected<std::optional<SuperblockLeft>> find_superblock_left(iscsi::BlockingLun& lun,
                                                             const SuperblockCopies& copies,
                                                             const Unsaid& unsaid);

}  // namespace csv::volume
