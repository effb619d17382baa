// Superblocks, heartbeat slots and chunk headers: a valid one with changes, and mostly a right
// checksum, since behind that is where wrong numbers would do harm.
//
//   kind and flags (1 byte: 0..2 superblock A, B, C; 3 slot; 4 chunk header; + 0x80: checksum left
//   wrong; + 0x40: raw content), then patches
#include "coordinator/volume/superblock.h"

#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/heartbeat_slot.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

volume::VolumeInfo example() {
  volume::VolumeInfo info;
  info.sequence = 7;
  info.id.fill(std::byte{0xa5});
  info.label = "volume1";
  info.lun_identity = "naa.6001405c5f000001";
  info.cluster = 4711;
  info.epoch = Epoch{3};
  info.coordinator = NodeId{2};
  info.coordinator_key = make_key({4711, NodeId{2}, KeyRole::coordinator, 99});
  info.tag = {1, 2, 3};
  info.lun_size = 1ull << 30;
  info.slots_offset = volume::disk::kSlotsOffset;
  info.wal_offset = volume::disk::kWalOffset;
  info.wal_size = 64ull << 20;
  info.data_offset = info.wal_offset + info.wal_size;
  info.data_size = info.lun_size - volume::disk::kTailSize - info.data_offset;
  for (std::uint64_t i = 0; i < 3; ++i)
    info.chunks.push_back(info.data_offset + i * volume::kChunkSize);
  return info;
}

/// The checksum of all our structures: bytes 8 to 11, over everything behind.
void sum_up(std::span<std::byte> bytes) {
  Le32 crc{crc32c(bytes.subspan(12))};
  std::memcpy(bytes.data() + 8, &crc, sizeof crc);
}

/// What is taken for valid can be used: it names places on a LUN of its size, and is written as it
/// was read.
void must_be_usable(const volume::VolumeInfo& info, volume::Copy copy) {
  auto inside = [&](std::uint64_t at, std::uint64_t size) {
    CSV_CHECK(at <= info.lun_size && size <= info.lun_size - at);
  };
  auto apart = [](std::uint64_t a, std::uint64_t a_size, std::uint64_t b, std::uint64_t b_size) {
    CSV_CHECK(a + a_size <= b || b + b_size <= a);
  };
  constexpr auto slots = volume::disk::kSlotCount * volume::disk::kSlotSize;
  inside(info.slots_offset, slots);
  inside(info.wal_offset, info.wal_size);
  inside(info.data_offset, info.data_size);
  for (auto each : {volume::Copy::a, volume::Copy::b, volume::Copy::c}) {
    auto at = place_of(each, info.lun_size);
    apart(at, volume::disk::kSuperblockSize, info.slots_offset, slots);
    apart(at, volume::disk::kSuperblockSize, info.wal_offset, info.wal_size);
    apart(at, volume::disk::kSuperblockSize, info.data_offset, info.data_size);
  }
  apart(info.slots_offset, slots, info.wal_offset, info.wal_size);
  apart(info.slots_offset, slots, info.data_offset, info.data_size);
  apart(info.wal_offset, info.wal_size, info.data_offset, info.data_size);
  CSV_CHECK(info.wal_size <= 1ull << 30);  // it is kept in memory
  auto again = decode_superblock(encode_superblock(info, copy).span(), copy);
  CSV_CHECK(again.state == volume::FoundSuperblock::State::valid && again.info == info);
}

void superblock(Input& input, volume::Copy copy, bool raw, bool sum) {
  auto bytes = encode_superblock(example(), copy);
  if (raw) {
    auto rest = input.rest();
    std::memcpy(bytes.data(), rest.data(), std::min(rest.size(), bytes.size()));
  }
  patch(input, bytes.span());
  if (sum) sum_up(bytes.span());
  auto found = decode_superblock(bytes.span(), copy);
  if (found.state == volume::FoundSuperblock::State::valid) must_be_usable(found.info, copy);
}

void slot(Input& input, bool raw, bool sum) {
  constexpr volume::VolumeId kVolume{};
  if (raw) {
    (void)decode_slot(input.rest(), kVolume);
    return;
  }
  auto bytes = encode(HeartbeatSlot{Key{1}, 2, 3, WallTime{4}}, kVolume);
  patch(input, bytes);
  if (sum) sum_up(bytes);
  if (auto found = decode_slot(bytes, kVolume)) {
    auto again = decode_slot(encode(*found, kVolume), kVolume);
    CSV_CHECK(again && again->key == found->key && again->counter == found->counter);
  }
}

void chunk_header(Input& input, bool sum) {
  auto info = example();
  auto bytes = volume::encode_chunk_header(info.id, 1, info.chunks[1], info.sequence);
  patch(input, bytes.span());
  if (sum) sum_up(bytes.span());
  (void)chunk_header_problem(bytes.span(), info, 1);
}

std::string le(std::uint64_t value) { return number(value); }

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto how = input.take();
  bool sum = (how & 0x80) == 0, raw = (how & 0x40) != 0;
  auto kind = how & 7;
  if (kind < 3) return superblock(input, static_cast<volume::Copy>(kind), raw, sum);
  if (kind == 3) return slot(input, raw, sum);
  chunk_header(input, sum);
}

std::vector<Seed> seeds() {
  auto with = [](char how, const std::string& patches) { return std::string(1, how) + patches; };
  std::vector<Seed> all = {
      {"superblock-a", with(0, "")},
      {"superblock-c", with(2, "")},
      {"slot", with(3, "")},
      {"chunk", with(4, "")},
      {"superblock-damaged", with('\x80', patch_of(300, "x"))},
      {"superblock-raw", with('\x40', std::string(512, 'C'))},
      {"superblock-newer", with(0, patch_of(12, number(2u)))},
      {"superblock-feature", with(0, patch_of(32, le(1)))},
      {"superblock-ro-feature", with(0, patch_of(24, le(1)))},
      {"superblock-compatible-feature", with(0, patch_of(16, le(1)))},
      {"superblock-elsewhere", with(1, patch_of(64, number(0u)))},
      {"superblock-small-lun", with(0, patch_of(112, le(4096)))},
      {"superblock-huge-lun", with(0, patch_of(112, le(~0ull)))},
      {"superblock-slots-over-a", with(0, patch_of(120, le(0)))},
      {"superblock-slots-over-log", with(0, patch_of(120, le(16ull << 20)))},
      {"superblock-log-over-a", with(0, patch_of(128, le(0)))},
      {"superblock-endless-log",
       with(0, patch_of(112, le(1ull << 60)) + patch_of(136, le(1ull << 59)) +
                   patch_of(144, le(3ull << 58)))},
      {"superblock-chunks", with(0, patch_of(168, number(3841u)))},
      {"superblock-chunks-full", with(0, patch_of(168, number(3840u)))},
      {"superblock-label", with(0, patch_of(176, std::string(64, 'x')))},
      {"superblock-no-label", with(0, patch_of(176, std::string(64, '\0')))},
      {"superblock-identity", with(0, patch_of(240, std::string(128, 'x')))},
      {"superblock-chunk-outside", with(0, patch_of(1024, number(0xffffffffu)))},
      {"slot-newer", with(3, patch_of(12, number(2u)))},
      {"slot-foreign", with(3, patch_of(16, "another volume"))},
      {"slot-short", with('\x43', "CSVBEAT\x1a")},
      {"chunk-foreign", with(4, patch_of(16, "another volume"))},
      {"chunk-elsewhere", with(4, patch_of(32, le(1)))},
  };
  return all;
}

}  // namespace csv::fuzz
