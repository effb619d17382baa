#include "coordinator/cluster/witness_format.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "csvfs/base/log.h"

namespace csv::cluster::disk {
namespace {

using Magic = std::array<char, 8>;
constexpr std::uint32_t kFormatVersion = 1;

/// All three begin alike. Little-endian; reserved bytes are written as zero and not looked at.
///
///   offset  size
///        0     8  magic           which of the three, and that it is ours
///        8     4  crc             CRC-32C of all that follows: a torn write
///       12     4  format_version
///       16    16  witness_id      what was left from before the LUN was formatted anew
struct Start {
  Magic magic;
  Le32 crc;
  Le32 format_version;
  std::array<std::byte, 16> witness_id;
};

///       32     2  cluster         another cluster's witness
///       34  4062  reserved
struct HeaderBlock {
  Start start;
  Le16 cluster;
  std::array<std::byte, 4062> reserved;
};
static_assert(sizeof(HeaderBlock) == kHeaderSize && alignof(HeaderBlock) == 1);
static_assert(offsetof(HeaderBlock, cluster) == 32);

///       32     8  key             the writer's reservation key: a slot of a former life
///       40     8  hold            which of the successive holds this is
///       48     8  counter         grows with every rewrite: that the holder moves
///       56     8  ring            the membership that he holds it for
///       64     8  written_at      writer's clock, ns since 1970, for people
///       72  4024  reserved
struct SlotBlock {
  Start start;
  Le64 key;
  Le64 hold;
  Le64 counter;
  Le64 ring;
  Le64 written_at;
  std::array<std::byte, 4024> reserved;
};
static_assert(sizeof(SlotBlock) == kSlotSize && alignof(SlotBlock) == 1);
static_assert(offsetof(SlotBlock, key) == 32 && offsetof(SlotBlock, written_at) == 64);

///       32     8  forced          of the configuration's tag
///       40     8  epoch
///       48     8  sequence
///       56     8  length          bytes of the configuration, which follows at 4096
///       64  4032  reserved
struct CopyBlock {
  Start start;
  Le64 forced;
  Le64 epoch;
  Le64 sequence;
  Le64 length;
  std::array<std::byte, 4032> reserved;
};
static_assert(sizeof(CopyBlock) == kCopyHeaderSize && alignof(CopyBlock) == 1);
static_assert(offsetof(CopyBlock, forced) == 32 && offsetof(CopyBlock, length) == 56);

constexpr Magic kHeaderMagic = {'C', 'S', 'V', 'W', 'I', 'T', 'N', '\x1a'};
constexpr Magic kSlotMagic = {'C', 'S', 'V', 'W', 'S', 'L', 'O', '\x1a'};
constexpr Magic kCopyMagic = {'C', 'S', 'V', 'W', 'C', 'F', 'G', '\x1a'};
constexpr std::size_t kSummedFrom = 12;

template <typename Block>
Block begin(Magic magic, const WitnessId& id) {
  static_assert(std::is_trivially_copyable_v<Block>);
  Block block{};
  block.start.magic = magic;
  block.start.format_version = kFormatVersion;
  block.start.witness_id = id;
  return block;
}

void sum_up(std::span<std::byte> bytes) {
  Le32 crc{crc32c(bytes.subspan(kSummedFrom))};
  std::memcpy(bytes.data() + offsetof(Start, crc), &crc, sizeof crc);
}

bool empty(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; });
}

Expected<void> check(std::span<const std::byte> bytes, Magic magic, std::string_view what) {
  Start start;
  std::memcpy(&start, bytes.data(), sizeof start);
  if (start.magic != magic) return Error{Errc::refused, fmt::format("there is no {} there", what)};
  if (start.crc != crc32c(bytes.subspan(kSummedFrom)))
    return Error{Errc::corrupt, fmt::format("the {} is damaged", what)};
  if (start.format_version != kFormatVersion)
    return Error{Errc::refused,
                 fmt::format("the {} has format version {}, this program knows {}", what,
                             std::uint32_t{start.format_version}, kFormatVersion)};
  return {};
}

Error of_another(std::string_view what) {
  return Error{Errc::refused,
               fmt::format("the {} was left from before the LUN was formatted", what)};
}

}  // namespace

std::array<std::byte, kHeaderSize> encode(const WitnessHeader& header) {
  auto block = begin<HeaderBlock>(kHeaderMagic, header.id);
  block.cluster = header.cluster;
  std::array<std::byte, kHeaderSize> bytes;
  std::memcpy(bytes.data(), &block, sizeof block);
  sum_up(bytes);
  return bytes;
}

Expected<WitnessHeader> decode_header(std::span<const std::byte> bytes) {
  if (bytes.size() != kHeaderSize)
    return Error{Errc::corrupt, fmt::format("a witness header of {} bytes", bytes.size())};
  if (empty(bytes))
    return Error{Errc::refused, "the LUN is not a witness: its first block is empty; format it"};
  CSV_TRY(check(bytes, kHeaderMagic, "witness header"));
  HeaderBlock block;
  std::memcpy(&block, bytes.data(), sizeof block);
  return WitnessHeader{block.start.witness_id, block.cluster};
}

std::array<std::byte, kSlotSize> encode(const WitnessSlot& slot, const WitnessId& witness) {
  auto block = begin<SlotBlock>(kSlotMagic, witness);
  block.key = raw(slot.key);
  block.hold = slot.hold;
  block.counter = slot.counter;
  block.ring = slot.ring;
  block.written_at = static_cast<std::uint64_t>(slot.written_at);
  std::array<std::byte, kSlotSize> bytes;
  std::memcpy(bytes.data(), &block, sizeof block);
  sum_up(bytes);
  return bytes;
}

Expected<WitnessSlot> decode_slot(std::span<const std::byte> bytes, const WitnessId& witness) {
  if (bytes.size() != kSlotSize)
    return Error{Errc::corrupt, fmt::format("a witness slot of {} bytes", bytes.size())};
  if (empty(bytes))
    return Error{std::errc::no_such_file_or_directory, "the witness slot was never written"};
  CSV_TRY(check(bytes, kSlotMagic, "witness slot"));
  SlotBlock block;
  std::memcpy(&block, bytes.data(), sizeof block);
  if (block.start.witness_id != witness) return of_another("witness slot");
  if (block.hold == 0 || block.key == 0)
    return Error{Errc::corrupt, "the witness slot names no hold or no key"};
  return WitnessSlot{Key{std::uint64_t{block.key}}, block.hold, block.counter, block.ring,
                     WallTime{static_cast<std::int64_t>(std::uint64_t{block.written_at})}};
}

Expected<Buffer> encode(const Witness::Memory& memory, const WitnessId& witness) {
  if (memory.configuration.size() > kMaxConfiguration)
    return Error{Errc::refused,
                 fmt::format("a configuration of {} bytes does not fit on a disk witness ({})",
                             memory.configuration.size(), kMaxConfiguration)};
  auto block = begin<CopyBlock>(kCopyMagic, witness);
  block.forced = memory.tag.forced;
  block.epoch = memory.tag.epoch;
  block.sequence = memory.tag.sequence;
  block.length = memory.configuration.size();
  auto whole = (memory.configuration.size() + 4095) / 4096 * 4096;
  auto bytes = Buffer::zeroed(kCopyHeaderSize + whole);
  std::memcpy(bytes.data(), &block, sizeof block);
  std::memcpy(bytes.data() + kCopyHeaderSize, memory.configuration.data(),
              memory.configuration.size());
  sum_up(bytes.span().first(kCopyHeaderSize + memory.configuration.size()));
  return bytes;
}

Expected<Witness::Memory> decode_copy(std::span<const std::byte> bytes, const WitnessId& witness) {
  constexpr auto kWhat = "copy of the configuration on the witness";
  if (bytes.size() != kCopySize)
    return Error{Errc::corrupt, fmt::format("a {} of {} bytes", kWhat, bytes.size())};
  if (empty(bytes.first(kCopyHeaderSize))) return Witness::Memory{};
  CopyBlock block;
  std::memcpy(&block, bytes.data(), sizeof block);
  std::uint64_t length = block.length;
  // What is summed depends on the length, so that comes first.
  if (length > kMaxConfiguration)
    return Error{Errc::corrupt, fmt::format("the {} is damaged", kWhat)};
  CSV_TRY(check(bytes.first(kCopyHeaderSize + length), kCopyMagic, kWhat));
  if (block.start.witness_id != witness) return of_another(kWhat);
  return Witness::Memory{{block.forced, block.epoch, block.sequence},
                         {reinterpret_cast<const char*>(bytes.data() + kCopyHeaderSize), length}};
}

}  // namespace csv::cluster::disk
