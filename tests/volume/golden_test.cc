// Images of every released version of what lies on a LUN. They are never rewritten: a new version
// gets new ones beside them.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/lun_vfs.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/heartbeat_slot.h"
#include "tests/volume/lun_bench.h"

using namespace csv;
using namespace csv::volume;

namespace {

std::filesystem::path path_of(const std::string& name) {
  return std::filesystem::path{CSV_SOURCE_DIR} / "tests" / "golden" / name;
}

std::vector<std::byte> golden(const std::string& name) {
  std::ifstream file{path_of(name), std::ios::binary};
  REQUIRE_MESSAGE(file.good(), path_of(name).string());
  std::vector<char> bytes{std::istreambuf_iterator<char>{file}, {}};
  auto seen = std::as_bytes(std::span{bytes});
  return {seen.begin(), seen.end()};
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

/// The same for ever.
VolumeInfo info_of_golden() {
  LunBench bench;
  auto info = example_info(bench);
  info.chunks = {info.data_offset, info.data_offset + kChunkSize,
                 info.data_offset + 5 * kChunkSize};
  return info;
}
const HeartbeatSlot kSlot{make_key({4711, NodeId{2}, KeyRole::mount, 77}), 12345, 1,
                          WallTime{1'700'000'001'000'000'000}};

constexpr LogSalts kSalts{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4},
                          std::byte{5}, std::byte{6}, std::byte{7}, std::byte{8}};

std::vector<std::byte> page_of_golden(const VolumeInfo& info) {
  std::vector<std::byte> page(disk::kPageSize);
  for (std::size_t i = 0; i < disk::kPageSize - disk::kPageReserve; ++i)
    page[i] = static_cast<std::byte>(i * 7);
  disk::PageTail tail{page_checksum(info.id, 300, page), 0};
  std::memcpy(page.data() + page.size() - sizeof tail, &tail, sizeof tail);
  return page;
}

CatalogCopy copy_of_golden(const VolumeInfo& info) {
  CatalogCopy copy;
  copy.slot = 1;
  copy.sequence = 12;
  copy.taken_at = WallTime{1'700'000'002'000'000'000};
  copy.pages = 20000;
  copy.places = {info.data_offset + 7 * kGroupSize, info.data_offset + 9 * kGroupSize};
  copy.sums = {0x01020304, 0x05060708};
  copy.info = info;
  return copy;
}

}  // namespace

TEST_CASE("golden: version 1 is still written, byte for byte") {
  auto info = info_of_golden();
  CHECK(same(encode_superblock(info, Copy::a).span(), golden("superblock-1.bin")));
  CHECK(same(encode_chunk_header(info.id, 2, info.chunks[2], 8).span(), golden("chunk-1.bin")));
  CHECK(same(encode(kSlot, info.id), golden("slot-1.bin")));
  CHECK(same(page_of_golden(info), golden("page-1.bin")));
  CHECK(same(encode_log_mark(info.id, kSalts, 345).span(), golden("log-mark-1.bin")));
  CHECK(same(encode_copy_header(copy_of_golden(info), 1).span(), golden("copy-1.bin")));
}

TEST_CASE("golden: version 1 is still read") {
  auto info = info_of_golden();
  auto found = decode_superblock(golden("superblock-1.bin"), Copy::a);
  REQUIRE_MESSAGE(found.state == FoundSuperblock::State::valid, found.what);
  CHECK(found.info == info);
  CHECK(chunk_header_problem(golden("chunk-1.bin"), info, 2).empty());
  disk::LogMark mark;
  auto bytes = golden("log-mark-1.bin");
  REQUIRE(bytes.size() == sizeof mark);
  std::memcpy(&mark, bytes.data(), sizeof mark);
  CHECK(mark.volume_id == info.id);
  CHECK(mark.salts == kSalts);
  CHECK(mark.frames == 345);
  auto slot = decode_slot(golden("slot-1.bin"), info.id);
  REQUIRE(slot);
  CHECK(slot->key == kSlot.key);
  CHECK(slot->counter == kSlot.counter);
  CHECK(slot->written_at == kSlot.written_at);
}

// For the day of a new version: volume_test --no-skip -tc="golden: write*"
TEST_CASE("golden: write those that are missing" * doctest::skip()) {
  auto info = info_of_golden();
  auto write = [](const std::string& name, std::span<const std::byte> bytes) {
    if (std::filesystem::exists(path_of(name))) return;
    std::ofstream{path_of(name), std::ios::binary}.write(
        reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  write("superblock-1.bin", encode_superblock(info, Copy::a).span());
  write("chunk-1.bin", encode_chunk_header(info.id, 2, info.chunks[2], 8).span());
  write("slot-1.bin", encode(kSlot, info.id));
  write("page-1.bin", page_of_golden(info));
  write("log-mark-1.bin", encode_log_mark(info.id, kSalts, 345).span());
  write("copy-1.bin", encode_copy_header(copy_of_golden(info), 1).span());
}
