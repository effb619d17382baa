#include "tests/fuzz/damage.h"

#include <algorithm>
#include <cstring>

#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume_format.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/crc32c.h"

namespace csv::fuzz {
namespace disk = volume::disk;

void Damage::apply(Input& input) {
  constexpr auto kPlaces = static_cast<std::uint8_t>(Place::kPlaces);
  while (!input.empty()) {
    auto place = static_cast<Place>(input.take() % kPlaces);
    auto which = input.take<std::uint16_t>();
    auto at = input.take<std::uint16_t>();
    auto content = input.take(input.take());
    change(place, which, at, content);
  }
  if (sums_ && log_changed_) sum_log();
  if (sums_ && copies_changed_)
    for (const auto& copy : image_->copies) sum_copy(copy);
}

void Damage::change(Place place, std::uint16_t which, std::uint16_t at,
                    std::span<const std::byte> content) {
  const auto& info = image_->info;
  const auto& copies = image_->copies;
  auto index = which % info.chunks.size();
  std::uint32_t number = 1 + which % 64;
  auto superblock = [&](std::uint64_t where) {
    change_block(where, disk::kSuperblockSize, at, content);
  };
  switch (place) {
    case Place::superblock_a: return superblock(disk::kSuperblockA);
    case Place::superblock_b: return superblock(disk::kSuperblockB);
    case Place::superblock_c: return superblock(place_of(volume::Copy::c, info.lun_size));
    case Place::chunk: return change_block(info.chunks[index], disk::kPageSize, at, content);
    case Place::page: return change_page(place_of_page(info, number), number, at, content);
    case Place::log_header: return change_log(0, disk::kWalHeaderSize, at, content);
    case Place::log_frame:
      return change_log(disk::kWalHeaderSize + (which % 32) * disk::kFrameSize, disk::kFrameSize,
                        at, content);
    case Place::log_mark: return change_block(place_of_log_mark(info), 4096, at, content);
    case Place::slots:
      return change_block(info.slots_offset + which % 256 * 4096ull, 4096, at, content);
    case Place::file_page: {
      if (file_.empty()) return;
      auto pages = file_.size() / disk::kPageSize;
      auto bytes = std::span{file_}.subspan(which % pages * disk::kPageSize, disk::kPageSize);
      std::size_t from = at % bytes.size();
      auto length = std::min(content.size(), bytes.size() - from);
      if (length > 0) std::memcpy(bytes.data() + from, content.data(), length);
      if (sums_) sum_page(bytes, static_cast<std::uint32_t>(1 + which % pages));
      return;
    }
    case Place::copy_header:
    case Place::copy_superblock:
    case Place::copy_page: break;
    case Place::kPlaces: return;
  }
  if (copies.empty()) return;
  const auto& copy = copies[which % copies.size()];
  if (place == Place::copy_header) return change_block(copy.group, disk::kPageSize, at, content);
  if (place == Place::copy_superblock) return superblock(copy.group + disk::kCopySuperblockOffset);
  copies_changed_ = true;
  number = static_cast<std::uint32_t>(1 + which / copies.size() % copy.pages);
  change_page(copy.group + disk::kCopyPagesOffset + (number - 1ull) * disk::kPageSize, number, at,
              content);
}

std::vector<std::byte> Damage::patched(std::uint64_t where, std::size_t size, std::uint16_t at,
                                       std::span<const std::byte> content) {
  std::vector<std::byte> bytes(size);
  lun_->peek(where, bytes);
  std::size_t from = at % size;
  auto length = std::min(content.size(), size - from);
  if (length > 0) std::memcpy(bytes.data() + from, content.data(), length);
  return bytes;
}

/// Superblocks, slots, marks and headers: the checksum of all behind it, in one place.
void Damage::change_block(std::uint64_t where, std::size_t size, std::uint16_t at,
                          std::span<const std::byte> content) {
  auto bytes = patched(where, size, at, content);
  if (sums_) {
    Le32 crc{crc32c(std::span{bytes}.subspan(12))};
    std::memcpy(bytes.data() + 8, &crc, sizeof crc);
  }
  lun_->poke(where, bytes);
}

void Damage::sum_page(std::span<std::byte> bytes, std::uint32_t number) const {
  disk::PageTail tail{volume::page_checksum(image_->info.id, number, bytes), 0};
  std::memcpy(bytes.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
}

void Damage::change_page(std::uint64_t where, std::uint32_t number, std::uint16_t at,
                         std::span<const std::byte> content) {
  auto bytes = patched(where, disk::kPageSize, at, content);
  if (sums_) sum_page(bytes, number);
  lun_->poke(where, bytes);
}

// The log is not made of blocks: its first 256 KiB are changed as a whole.
std::vector<std::byte> Damage::whole_log() {
  std::vector<std::byte> bytes(256 << 10);
  lun_->peek(image_->info.wal_offset, bytes);
  return bytes;
}

void Damage::change_log(std::size_t from, std::size_t size, std::uint16_t at,
                        std::span<const std::byte> content) {
  log_changed_ = true;
  auto bytes = whole_log();
  auto to = from + at % size;
  auto length = std::min({content.size(), size - at % size, bytes.size() - to});
  if (length > 0) std::memcpy(bytes.data() + to, content.data(), length);
  lun_->poke(image_->info.wal_offset, bytes);
}

/// SQLite's running sums of a log with little-endian sums (the magic number says which).
void Damage::sum_log() {
  auto bytes = whole_log();
  std::uint32_t a = 0, b = 0;
  auto add = [&](std::size_t at, std::size_t length) {
    for (std::size_t i = 0; i < length; i += 8) {
      Le32 x, y;
      std::memcpy(&x, bytes.data() + at + i, 4);
      std::memcpy(&y, bytes.data() + at + i + 4, 4);
      a += x + b;
      b += y + a;
    }
  };
  auto put = [&](std::size_t at, std::uint32_t value) {
    for (std::size_t i = 0; i < 4; ++i)
      bytes[at + i] = static_cast<std::byte>(value >> (8 * (3 - i)));
  };
  put(0, 0x377f0682);
  add(0, 24);
  put(24, a);
  put(28, b);
  for (auto at = disk::kWalHeaderSize; at + disk::kFrameSize <= bytes.size();
       at += disk::kFrameSize) {
    if (std::memcmp(bytes.data() + at + 8, bytes.data() + 16, 8) != 0) break;
    add(at, 8);
    add(at + disk::kFrameHeaderSize, disk::kPageSize);
    put(at + 16, a);
    put(at + 20, b);
  }
  lun_->poke(image_->info.wal_offset, bytes);
}

/// The sum over the pages' sums, which the header of a copy's only group has.
void Damage::sum_copy(const Image::Copy& copy) {
  std::vector<std::byte> pages(copy.pages * disk::kPageSize);
  lun_->peek(copy.group + disk::kCopyPagesOffset, pages);
  std::uint32_t crc = 0;
  for (std::size_t end = disk::kPageSize; end <= pages.size(); end += disk::kPageSize)
    crc = crc32c(std::span{pages}.subspan(end - sizeof(disk::PageTail), 4), crc);
  Le32 sum{crc};
  change_block(copy.group, disk::kPageSize, offsetof(disk::CopyHeader, sums),
               std::as_bytes(std::span{&sum, 1}));
}

std::string change_of(Place place, std::uint16_t which, std::uint16_t at,
                      const std::string& content) {
  return std::string(1, static_cast<char>(place)) + number(which) + number(at) +
         static_cast<char>(content.size()) + content;
}

}  // namespace csv::fuzz
