#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "coordinator/volume/volume.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/buffer.h"

namespace csv::volume {

/// The copies of the superblock. A and B count; C is written along with B and read only to repair a
/// volume that lost both.
enum class Copy : std::uint32_t { a = 0, b = 1, c = 2 };

/// Where a copy lies on a LUN of `lun_size` bytes.
std::uint64_t place_of(Copy copy, std::uint64_t lun_size);

/// The 16 KiB of `info` as copy `copy`. Aborts on an info that no volume can have.
Buffer encode_superblock(const VolumeInfo& info, Copy copy);

/// What 16 KiB read from a copy's place turned out to be.
struct FoundSuperblock {
  enum class State { valid, absent, damaged, newer } state = State::absent;
  VolumeInfo info;   ///< If valid.
  std::string what;  ///< Otherwise, in words: "damaged (its checksum is wrong)".
};
FoundSuperblock decode_superblock(std::span<const std::byte> bytes, Copy copy);

/// All three copies as they are found. Copy C is looked for where it is on a LUN of the size that
/// A or B says, else of the LUN's own size.
struct SuperblockCopies {
  FoundSuperblock a, b, c;
};
Expected<SuperblockCopies> read_superblock_copies(iscsi::BlockingLun& lun);
/// What A and B say together, or why they cannot be used; as read_superblocks().
Expected<VolumeInfo> superblock_in_force(iscsi::BlockingLun& lun, const SuperblockCopies& copies);

/// A name a volume may have, or why not.
Expected<void> check_label(std::string_view label);

std::string to_string(const VolumeId& id);

}  // namespace csv::volume
