#include "tests/simulation/one_writer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "coordinator/volume/superblock.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/log.h"

namespace csv::sim {
namespace {

using volume::Copy;
using volume::FoundSuperblock;
constexpr std::array kCopies = {Copy::a, Copy::b, Copy::c};
constexpr std::uint64_t kSuperblock = 16 << 10;

bool overlap(std::uint64_t a, std::uint64_t a_length, std::uint64_t b, std::uint64_t b_length) {
  return a < b + b_length && b < a + a_length;
}

std::optional<Copy> copy_at(std::uint64_t offset, std::uint64_t lun_size) {
  for (auto copy : kCopies)
    if (offset == volume::place_of(copy, lun_size)) return copy;
  return std::nullopt;
}

}  // namespace

OneWriter::OneWriter(volume::VolumeInfo info, std::function<void(std::string)> violation)
    : newest_{std::move(info)}, violation_{std::move(violation)} {}

bool OneWriter::concerned(std::uint64_t offset, std::uint64_t length) const {
  auto touches = [&](std::uint64_t at, std::uint64_t size) {
    return overlap(offset, length, at, size);
  };
  return touches(newest_.wal_offset, newest_.wal_size) ||
         std::any_of(kCopies.begin(), kCopies.end(),
                     [&](Copy copy) {
                       return touches(volume::place_of(copy, newest_.lun_size), kSuperblock);
                     }) ||
         std::any_of(newest_.chunks.begin(), newest_.chunks.end(),
                     [&](std::uint64_t chunk) { return touches(chunk, volume::kChunkSize); });
}

void OneWriter::wrote(Writer writer, const std::string& name, std::uint64_t offset,
                      std::span<const std::byte> data) {
  if (auto copy = copy_at(offset, newest_.lun_size)) {
    if (data.size() < kSuperblock) return;  // Torn: it says nothing.
    auto found = volume::decode_superblock(data.first(kSuperblock), *copy);
    if (found.state != FoundSuperblock::State::valid)
      return fail(name, "writes a superblock that is not valid");
    return superblock(writer, name, found.info);
  }
  if (writer != owner_) fail(name, fmt::format("changes the catalog at {}", offset));
}

void OneWriter::superblock(Writer writer, const std::string& name,
                           const volume::VolumeInfo& found) {
  if (found.epoch > newest_.epoch) {
    newest_ = found;
    owner_ = writer;
    owner_name_ = name;
    return;
  }
  // Whoever takes the volume over makes the copies say the same, first.
  if (found == newest_) return;
  if (writer != owner_ || found.epoch != newest_.epoch)
    return fail(name, fmt::format("writes a superblock of epoch {}", raw(found.epoch)));
  newest_ = found;
}

void OneWriter::power_loss(const iscsi::RamDisk& disk) {
  forgot(disk);
  owner_ = 0;
  owner_name_ = "nobody";
}

void OneWriter::forgot(const iscsi::RamDisk& disk) {
  std::optional<volume::VolumeInfo> newest;
  for (auto copy : {Copy::a, Copy::b}) {
    Buffer bytes{kSuperblock};
    disk.peek(volume::place_of(copy, newest_.lun_size), bytes.span());
    auto found = volume::decode_superblock(bytes.span(), copy);
    if (found.state != FoundSuperblock::State::valid) continue;
    if (!newest || newest->sequence < found.info.sequence) newest = std::move(found.info);
  }
  if (newest) newest_ = *std::move(newest);
}

void OneWriter::fail(const std::string& name, const std::string& what) const {
  violation_(fmt::format("one writer of metadata: {} {}, but epoch {} is {}'s", name, what,
                         raw(newest_.epoch), owner_name_));
}

}  // namespace csv::sim
