#include "coordinator/volume/superblock.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <type_traits>

#include "coordinator/volume/bad_blocks.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"
#include "iscsi/kept_identity.h"

namespace csv::volume {
static_assert(kMaxChunks == disk::kChunkPlaces);
namespace {

constexpr std::array kNames = {"A", "B", "C"};
const char* name_of(Copy copy) { return kNames[static_cast<std::size_t>(copy)]; }

template <std::size_t N>
void put_text(std::array<char, N>& field, const std::string& text) {
  CSV_CHECK(text.size() < N);
  std::copy(text.begin(), text.end(), field.begin());
}

/// Nothing, if the field has no NUL.
template <std::size_t N>
std::optional<std::string> text_of(const std::array<char, N>& field) {
  auto end = std::find(field.begin(), field.end(), '\0');
  if (end == field.end()) return {};
  return std::string{field.begin(), end};
}

/// What the checksum of a structure covers: everything behind it. The same place in all of them.
std::uint32_t checksum(std::span<const std::byte> bytes) { return crc32c(bytes.subspan(12)); }

/// Which regions share bytes; empty if none do. All lie within the LUN.
std::string overlaps(const VolumeInfo& info) {
  struct Region {
    std::string_view name;
    std::uint64_t from = 0, size = 0;
  };
  std::array<Region, 6> all = {{
      {"superblock A", disk::kSuperblockA, disk::kSuperblockSize},
      {"superblock B", disk::kSuperblockB, disk::kSuperblockSize},
      {"superblock C", place_of(Copy::c, info.lun_size), disk::kSuperblockSize},
      {"the heartbeat slots", info.slots_offset, disk::kSlotCount * disk::kSlotSize},
      {"the log", info.wal_offset, info.wal_size},
      {"the data area", info.data_offset, info.data_size},
  }};
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.from < b.from; });
  for (std::size_t i = 1; i < all.size(); ++i)
    if (all[i - 1].from + all[i - 1].size > all[i].from)
      return fmt::format("{} and {} overlap", all[i - 1].name, all[i].name);
  return {};
}

/// Why these numbers cannot describe a volume; empty if they can.
std::string senseless(const VolumeInfo& info) {
  auto aligned = [](std::uint64_t at) { return at % kRegionAlignment == 0; };
  auto outside = [&](std::uint64_t at, std::uint64_t size) {
    return at > info.lun_size || size > info.lun_size - at;
  };
  if (info.lun_size < disk::kWalOffset) return "the LUN's size is too small";
  if (auto bad = check_label(info.label); !bad) return bad.error().message();
  if (!aligned(info.slots_offset) || outside(info.slots_offset, disk::kSlotCount * disk::kSlotSize))
    return "the heartbeat slots lie outside the LUN";
  if (!aligned(info.wal_offset) || !aligned(info.wal_size) || info.wal_size == 0 ||
      outside(info.wal_offset, info.wal_size))
    return "the log lies outside the LUN";
  if (info.wal_size > disk::kLargestWal) return "the log is larger than a log can be";
  if (!aligned(info.data_offset) || !aligned(info.data_size) ||
      outside(info.data_offset, info.data_size))
    return "the data area lies outside the LUN";
  if (auto why = overlaps(info); !why.empty()) return why;
  auto sorted = info.chunks;
  std::sort(sorted.begin(), sorted.end());
  auto end = info.data_offset;
  for (auto at : sorted) {
    if (!aligned(at) || at < end) return "catalog chunks overlap";
    if (at - info.data_offset > info.data_size ||
        info.data_size - (at - info.data_offset) < kChunkSize)
      return "a catalog chunk lies outside the data area";
    end = at + kChunkSize;
  }
  return {};
}

VolumeInfo info_of(const disk::Superblock& block) {
  VolumeInfo info;
  info.sequence = block.sequence;
  info.id = block.volume_id;
  info.label = text_of(block.label).value_or("");
  info.lun_identity = text_of(block.lun_identity).value_or("");
  info.cluster = block.cluster;
  info.epoch = Epoch{std::uint64_t{block.epoch}};
  info.coordinator = NodeId{block.coordinator};
  info.coordinator_key = Key{std::uint64_t{block.coordinator_key}};
  info.closed_key = Key{std::uint64_t{block.closed_key}};
  info.tag = {block.tag_forced, block.tag_epoch, block.tag_sequence};
  info.formatted_at = WallTime{static_cast<std::int64_t>(std::uint64_t{block.formatted_at})};
  info.lun_size = block.lun_size;
  info.slots_offset = block.slots_offset;
  info.wal_offset = block.wal_offset;
  info.wal_size = block.wal_size;
  info.data_offset = block.data_offset;
  info.data_size = block.data_size;
  for (std::uint32_t i = 0; i < block.chunk_count && i < kMaxChunks; ++i)
    info.chunks.push_back(std::uint64_t{block.chunks[i]} * disk::kChunkPlaceUnit);
  return info;
}

/// What was read, or that the LUN could not read it.
FoundSuperblock found_in(std::span<const std::byte> bytes, Copy copy, std::uint64_t at,
                         const BadBlocks& bad) {
  if (auto why = bad.within(at, bytes.size()); !why.empty())
    return {FoundSuperblock::State::damaged, {}, fmt::format("damaged ({})", why)};
  return decode_superblock(bytes, copy);
}

Expected<FoundSuperblock> read_last(iscsi::BlockingLun& lun, std::uint64_t lun_size) {
  Buffer block{disk::kSuperblockSize};
  auto at = place_of(Copy::c, lun_size);
  const std::array<iscsi::BlockingLun::Read, 1> reads = {{{at, block.span()}}};
  auto bad = read_around_bad_blocks(lun, reads);
  if (!bad) return bad.error().within("reading superblock C");
  return found_in(block.span(), Copy::c, at, *bad);
}

/// Both copies that count, as read.
struct Pair {
  FoundSuperblock a, b;
};

Expected<Pair> read_pair(iscsi::BlockingLun& lun) {
  if (lun.lun().geometry().size_bytes() < disk::kSuperblockB + disk::kSuperblockSize)
    return Error{Errc::refused, fmt::format("no csvfs volume: the LUN has only {} bytes",
                                            lun.lun().geometry().size_bytes())};
  Buffer a{disk::kSuperblockSize}, b{disk::kSuperblockSize};
  const std::array<iscsi::BlockingLun::Read, 2> reads = {
      {{disk::kSuperblockA, a.span()}, {disk::kSuperblockB, b.span()}}};
  auto bad = read_around_bad_blocks(lun, reads);
  if (!bad) return bad.error().within("reading the superblocks");
  return Pair{found_in(a.span(), Copy::a, disk::kSuperblockA, *bad),
              found_in(b.span(), Copy::b, disk::kSuperblockB, *bad)};
}

std::string in_words(const Pair& pair) {
  return fmt::format("superblock A: {}; superblock B: {}", pair.a.what, pair.b.what);
}

/// The copy in force.
Expected<VolumeInfo> choose(iscsi::BlockingLun& lun, const Pair& pair) {
  using State = FoundSuperblock::State;
  const auto& [a, b] = pair;
  for (const auto* each : {&a, &b})
    if (each->state == State::newer)
      return Error{Errc::refused, fmt::format("this volume needs a newer csvfs ({})", each->what)};
  if (a.state == State::absent && b.state == State::absent) {
    auto found = CSV_TRY(recognise(lun));
    return Error{Errc::refused, found.empty() ? "no csvfs volume: the LUN is not formatted"
                                              : "no csvfs volume: the LUN holds " + found};
  }
  bool a_valid = a.state == State::valid, b_valid = b.state == State::valid;
  if (!a_valid && !b_valid)
    return Error{Errc::corrupt, "neither superblock can be used: " + in_words(pair)};
  if (a_valid != b_valid) return a_valid ? a.info : b.info;
  if (a.info.id != b.info.id)
    return Error{Errc::corrupt,
                 fmt::format("the superblocks are of two volumes: A says {}, B says {}",
                             to_string(a.info.id), to_string(b.info.id))};
  if (a.info.sequence == b.info.sequence && !(a.info == b.info))
    return Error{Errc::corrupt,
                 fmt::format("both superblocks have sequence {} and yet differ", a.info.sequence)};
  return a.info.sequence >= b.info.sequence ? a.info : b.info;
}

Expected<void> write_copy(iscsi::BlockingLun& lun, const VolumeInfo& info, Copy copy) {
  auto block = encode_superblock(info, copy);
  auto wrote = lun.write(place_of(copy, info.lun_size), block.span());
  if (wrote) wrote = lun.flush();
  if (!wrote) return wrote.error().within(fmt::format("writing superblock {}", name_of(copy)));
  return {};
}

}  // namespace

std::uint64_t place_of(Copy copy, std::uint64_t lun_size) {
  switch (copy) {
    case Copy::a: return disk::kSuperblockA;
    case Copy::b: return disk::kSuperblockB;
    case Copy::c: break;
  }
  return lun_size / disk::kSuperblockSize * disk::kSuperblockSize - disk::kSuperblockSize;
}

Buffer encode_superblock(const VolumeInfo& info, Copy copy) {
  CSV_CHECK(senseless(info).empty() && info.chunks.size() <= kMaxChunks);
  disk::Superblock block{};
  block.magic = disk::kSuperblockMagic;
  block.format_version = disk::kFormatVersion;
  block.compatible = disk::kCompatible;
  block.read_only_compatible = disk::kReadOnlyCompatible;
  block.incompatible = disk::kIncompatible;
  block.sequence = info.sequence;
  block.volume_id = info.id;
  block.copy = static_cast<std::uint32_t>(copy);
  block.cluster = info.cluster;
  block.coordinator = raw(info.coordinator);
  block.epoch = raw(info.epoch);
  block.coordinator_key = raw(info.coordinator_key);
  block.closed_key = raw(info.closed_key);
  block.tag_forced = info.tag.forced;
  block.tag_epoch = info.tag.epoch;
  block.tag_sequence = info.tag.sequence;
  block.lun_size = info.lun_size;
  block.slots_offset = info.slots_offset;
  block.wal_offset = info.wal_offset;
  block.wal_size = info.wal_size;
  block.data_offset = info.data_offset;
  block.data_size = info.data_size;
  block.formatted_at = static_cast<std::uint64_t>(info.formatted_at);
  block.chunk_count = static_cast<std::uint32_t>(info.chunks.size());
  put_text(block.label, info.label);
  put_text(block.lun_identity, info.lun_identity);
  for (std::size_t i = 0; i < info.chunks.size(); ++i)
    block.chunks[i] = static_cast<std::uint32_t>(info.chunks[i] / disk::kChunkPlaceUnit);
  block.crc = checksum(std::as_bytes(std::span{&block, 1}));
  return Buffer::copy_of(std::as_bytes(std::span{&block, 1}));
}

FoundSuperblock decode_superblock(std::span<const std::byte> bytes, Copy copy) {
  using State = FoundSuperblock::State;
  CSV_CHECK(bytes.size() == disk::kSuperblockSize);
  disk::Superblock block;
  std::memcpy(&block, bytes.data(), sizeof block);
  if (block.magic != disk::kSuperblockMagic) return {State::absent, {}, "not there"};
  if (block.crc != checksum(bytes)) return {State::damaged, {}, "damaged (its checksum is wrong)"};
  if (block.format_version != disk::kFormatVersion)
    return {block.format_version > disk::kFormatVersion ? State::newer : State::damaged,
            {},
            fmt::format("format version {}, this program knows {}", +block.format_version,
                        disk::kFormatVersion)};
  auto unknown = (block.incompatible & ~disk::kIncompatible) |
                 (block.read_only_compatible & ~disk::kReadOnlyCompatible);
  if (unknown != 0) return {State::newer, {}, fmt::format("unknown features, bits {:#x}", unknown)};
  if (block.copy != static_cast<std::uint32_t>(copy))
    return {
        State::damaged,
        {},
        fmt::format("damaged (a superblock that belongs elsewhere, copy number {})", +block.copy)};
  if (!text_of(block.label) || !text_of(block.lun_identity) || block.chunk_count > kMaxChunks)
    return {State::damaged, {}, "damaged (impossible label or number of chunks)"};
  auto info = info_of(block);
  if (auto why = senseless(info); !why.empty())
    return {State::damaged, {}, fmt::format("damaged ({})", why)};
  return {State::valid, std::move(info), "valid"};
}

Expected<void> check_label(std::string_view label) {
  auto plain = [](unsigned char c) { return c > ' ' && c != '/' && c != 0x7f; };
  if (label.empty() || label.size() > 63)
    return Error{Errc::refused, "a volume's name has 1 to 63 bytes"};
  if (label == "." || label == ".." || !std::all_of(label.begin(), label.end(), plain))
    return Error{Errc::refused,
                 "a volume's name is a file name without spaces, '/' and control characters"};
  return {};
}

std::string to_string(const VolumeId& id) {
  std::string text;
  for (std::size_t i = 0; i < id.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", std::to_integer<unsigned>(id[i]));
  }
  return text;
}

std::string lun_identity(const iscsi::TargetProfile& profile) {
  return iscsi::kept_identity(profile.identity);
}

std::uint64_t slot_offset(const VolumeInfo& info, NodeId node, KeyRole role) {
  auto number = raw(node) * 4ull + raw(role);
  CSV_CHECK(number < disk::kSlotCount);
  return info.slots_offset + number * disk::kSlotSize;
}

Expected<SuperblockCopies> read_superblock_copies(iscsi::BlockingLun& lun) {
  auto pair = CSV_TRY(read_pair(lun));
  auto size = lun.lun().geometry().size_bytes();
  for (const auto* each : {&pair.a, &pair.b})
    if (each->state == FoundSuperblock::State::valid && each->info.lun_size <= size) {
      size = each->info.lun_size;
      break;
    }
  auto last = CSV_TRY(read_last(lun, size));
  return SuperblockCopies{std::move(pair.a), std::move(pair.b), std::move(last)};
}

Expected<VolumeInfo> superblock_in_force(iscsi::BlockingLun& lun, const SuperblockCopies& copies) {
  return choose(lun, {copies.a, copies.b});
}

Expected<VolumeInfo> read_superblocks(iscsi::BlockingLun& lun, bool repair) {
  auto pair = CSV_TRY(read_pair(lun));
  auto info = CSV_TRY(choose(lun, pair));
  auto size = lun.lun().geometry().size_bytes();
  if (size < info.lun_size)
    return Error{Errc::refused,
                 fmt::format("volume {} was formatted with {} bytes and the LUN now has {}: it "
                             "shrank; enlarge it again",
                             info.label, info.lun_size, size)};
  if (repair) {
    auto stale = [&](const FoundSuperblock& found) {
      return found.state != FoundSuperblock::State::valid || found.info.sequence != info.sequence;
    };
    // Whoever wrote it last may have died before it was past the target's cache, or been told that
    // it was not: so it is made so, in its place, before the other one is written, here or by a
    // rewrite, which begins with A. Else both could be torn at once.
    if (lun.lun().profile().write_cache)
      CSV_TRY(write_copy(lun, info, stale(pair.b) ? Copy::a : Copy::b));
    if (stale(pair.a)) CSV_TRY(write_copy(lun, info, Copy::a));
    if (stale(pair.b)) CSV_TRY(write_copy(lun, info, Copy::b));
  }
  return info;
}

Expected<void> write_superblocks(iscsi::BlockingLun& lun, VolumeInfo& info) {
  ++info.sequence;
  CSV_TRY(write_copy(lun, info, Copy::a));
  CSV_TRY(write_copy(lun, info, Copy::b));
  // C does not count, and must never be newer than what counts.
  return write_copy(lun, info, Copy::c);
}

Expected<std::vector<std::string>> superblock_problems(iscsi::BlockingLun& lun) {
  auto pair = CSV_TRY(read_pair(lun));
  auto info = CSV_TRY(choose(lun, pair));
  auto c = CSV_TRY(read_last(lun, info.lun_size));
  std::vector<std::string> problems;
  auto look = [&](Copy copy, const FoundSuperblock& found) {
    if (found.state != FoundSuperblock::State::valid)
      problems.push_back(fmt::format("superblock {}: {}", name_of(copy), found.what));
    else if (!(found.info == info))
      problems.push_back(fmt::format("superblock {}: sequence {}, older than the {} in force",
                                     name_of(copy), found.info.sequence, info.sequence));
  };
  look(Copy::a, pair.a);
  look(Copy::b, pair.b);
  look(Copy::c, c);
  return problems;
}

}  // namespace csv::volume
