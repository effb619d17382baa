#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "coordinator/cluster/witness.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

// What lies on a disk witness, a LUN of at least 1 MiB. Pure: no I/O. Drawn in the .cc file.
//
//   0       header: whose witness this is; written once, by formatting
//   64 KiB  64 slots of 4 KiB, one a node: who holds it, and that he still moves
//   320 KiB the configuration, copy 0
//   640 KiB the configuration, copy 1
//   960 KiB reserved

namespace csv::cluster::disk {

inline constexpr std::uint64_t kWitnessSize = 1 << 20;
inline constexpr std::size_t kHeaderSize = 4096;
inline constexpr std::size_t kSlotSize = 4096;
inline constexpr std::size_t kSlots = 64;
inline constexpr std::uint64_t kSlotsAt = 64 << 10;
inline constexpr std::size_t kCopySize = 320 << 10;
inline constexpr std::array<std::uint64_t, 2> kCopyAt = {320 << 10, 640 << 10};
inline constexpr std::size_t kCopyHeaderSize = 4096;
inline constexpr std::size_t kMaxConfiguration = kCopySize - kCopyHeaderSize;
static_assert(kSlotsAt + kSlots * kSlotSize <= kCopyAt[0]);
static_assert(kCopyAt[0] + kCopySize <= kCopyAt[1] && kCopyAt[1] + kCopySize <= kWitnessSize);

using WitnessId = std::array<std::byte, 16>;

struct WitnessHeader {
  WitnessId id{};  ///< Random; tells what was left from before it was formatted anew.
  std::uint16_t cluster = 0;
  bool operator==(const WitnessHeader&) const = default;
};
std::array<std::byte, kHeaderSize> encode(const WitnessHeader& header);
/// Errc::refused: empty, foreign, or of a newer format. Errc::corrupt: damaged.
Expected<WitnessHeader> decode_header(std::span<const std::byte> bytes);

/// Written by the one that holds the witness, each time he proves that he does.
struct WitnessSlot {
  Key key{};                  ///< The writer's, and with it his node and life.
  std::uint64_t hold = 0;     ///< Grows by one each time somebody takes the witness. Never 0.
  std::uint64_t counter = 0;  ///< Grows with every write.
  std::uint64_t ring = 0;     ///< Of the engine's view that the holder's side is.
  WallTime written_at{};      ///< For people.
  bool operator==(const WitnessSlot&) const = default;
};
std::array<std::byte, kSlotSize> encode(const WitnessSlot& slot, const WitnessId& witness);
/// Never written: std::errc::no_such_file_or_directory. Else as a header.
Expected<WitnessSlot> decode_slot(std::span<const std::byte> bytes, const WitnessId& witness);

/// Whole blocks of 4 KiB, at most kCopySize; Errc::refused if the configuration is too long.
Expected<Buffer> encode(const Witness::Memory& memory, const WitnessId& witness);
/// Of what lies at one of kCopyAt. Never written: nothing, with the tag 0. Else as a header.
Expected<Witness::Memory> decode_copy(std::span<const std::byte> bytes, const WitnessId& witness);

}  // namespace csv::cluster::disk
