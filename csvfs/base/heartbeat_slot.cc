#include "csvfs/base/heartbeat_slot.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"

namespace csv {
namespace {

/// Rewritten every second through the nexus it speaks for. Little-endian; reserved bytes are
/// written as zero and not looked at.
///
///   offset  size
///        0     8  magic           "CSVBEAT\x1a"
///        8     4  crc             CRC-32C of bytes [12, 4096): a torn write
///       12     4  format_version
///       16    16  volume_id       a sign left from before the LUN was formatted anew
///       32     8  key             the writer's reservation key: a slot of a former life
///       40     8  counter         grows with every rewrite: an old sign that is merely still there
///       48     8  mode            how the writer reaches the volume
///       56     8  written_at      writer's clock, ns since 1970, for people
///       64     8  quorate         1: its node's membership lease runs, 2: it does not; 0: not said
///       72  4024  reserved
struct Block {
  std::array<char, 8> magic;
  Le32 crc;
  Le32 format_version;
  std::array<std::byte, 16> volume_id;
  Le64 key;
  Le64 counter;
  Le64 mode;
  Le64 written_at;
  Le64 quorate;
  std::array<std::byte, 4024> reserved;
};
static_assert(sizeof(Block) == kHeartbeatSlotSize && alignof(Block) == 1);
static_assert(offsetof(Block, volume_id) == 16 && offsetof(Block, key) == 32);
static_assert(offsetof(Block, written_at) == 56 && offsetof(Block, quorate) == 64);
static_assert(std::is_trivially_copyable_v<Block>);

constexpr std::array<char, 8> kMagic = {'C', 'S', 'V', 'B', 'E', 'A', 'T', '\x1a'};
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::uint64_t kNotSaid = 0, kQuorate = 1, kNotQuorate = 2;

}  // namespace

std::array<std::byte, kHeartbeatSlotSize> encode(const HeartbeatSlot& slot,
                                                 const std::array<std::byte, 16>& volume) {
  Block block{};
  block.magic = kMagic;
  block.format_version = kFormatVersion;
  block.volume_id = volume;
  block.key = raw(slot.key);
  block.counter = slot.counter;
  block.mode = slot.mode;
  block.written_at = static_cast<std::uint64_t>(slot.written_at);
  block.quorate = !slot.quorate ? kNotSaid : *slot.quorate ? kQuorate : kNotQuorate;
  std::array<std::byte, kHeartbeatSlotSize> bytes;
  std::memcpy(bytes.data(), &block, sizeof block);
  block.crc = crc32c(std::span{bytes}.subspan(12));
  std::memcpy(bytes.data(), &block, sizeof block);
  return bytes;
}

Expected<HeartbeatSlot> decode_slot(std::span<const std::byte> bytes,
                                    const std::array<std::byte, 16>& volume) {
  if (bytes.size() != sizeof(Block))
    return Error{Errc::corrupt, "a heartbeat slot of " + std::to_string(bytes.size()) + " bytes"};
  if (std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; }))
    return Error{std::errc::no_such_file_or_directory, "the heartbeat slot was never written"};
  Block block;
  std::memcpy(&block, bytes.data(), sizeof block);
  if (block.magic != kMagic || block.crc != crc32c(bytes.subspan(12)))
    return Error{Errc::corrupt, "the heartbeat slot is damaged"};
  if (block.format_version != kFormatVersion)
    return Error{Errc::refused, "the heartbeat slot has format version " +
                                    std::to_string(std::uint32_t{block.format_version}) +
                                    ", this program knows 1"};
  if (block.volume_id != volume)
    return Error{Errc::refused, "the heartbeat slot is of another volume"};
  std::optional<bool> quorate;
  if (block.quorate == kQuorate || block.quorate == kNotQuorate)
    quorate = block.quorate == kQuorate;
  return HeartbeatSlot{Key{std::uint64_t{block.key}}, block.counter, block.mode,
                       WallTime{static_cast<std::int64_t>(std::uint64_t{block.written_at})},
                       quorate};
}

}  // namespace csv
