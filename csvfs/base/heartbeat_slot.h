#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv {

inline constexpr std::size_t kHeartbeatSlotSize = 4096;

/// One process's sign of life, as it lies in its slot on a volume's LUN (drawn in the .cc file and
/// in docs/volume-format.md). Here and not with the rest of the format, because mounts write it too
/// and know nothing else of what lies on a LUN.
struct HeartbeatSlot {
  Key key{};
  std::uint64_t counter = 0;
  std::uint64_t mode = 0;
  WallTime written_at{};
  /// The membership lease of the writer's node runs; nullopt: the writer does not say.
  std::optional<bool> quorate = std::nullopt;
};
std::array<std::byte, kHeartbeatSlotSize> encode(const HeartbeatSlot& slot,
                                                 const std::array<std::byte, 16>& volume);
/// Never written: std::errc::no_such_file_or_directory. Damaged: Errc::corrupt. Of another volume,
/// or of a newer format: Errc::refused.
Expected<HeartbeatSlot> decode_slot(std::span<const std::byte> bytes,
                                    const std::array<std::byte, 16>& volume);

}  // namespace csv
