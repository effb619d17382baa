#include <doctest/doctest.h>

#include <cstring>
#include <string_view>

#include "tests/volume/lun_bench.h"

using namespace csv;
using namespace csv::volume;
using namespace std::string_literals;
using namespace std::string_view_literals;

namespace {

void put(LunBench& bench, std::uint64_t at, std::string_view text) {
  constexpr std::uint64_t kBlock = 512;
  auto from = at / kBlock * kBlock;
  auto bytes = bench.content(from, (at - from + text.size() + kBlock - 1) / kBlock * kBlock);
  std::memcpy(bytes.data() + (at - from), text.data(), text.size());
  bench.disk->poke(from, bytes);
}

std::string seen(LunBench& bench) {
  auto path = bench.connect();
  auto found = recognise(path.io);
  REQUIRE(found);
  CHECK(path.lun->counters().writes == 0);
  return *found;
}

constexpr std::uint64_t kSize = 512ull << 20;

struct Case {
  std::string_view what;
  std::vector<std::pair<std::uint64_t, std::string_view>> marks;
};

}  // namespace

TEST_CASE("recognise: a LUN of zeros holds nothing") {
  LunBench bench;
  CHECK(seen(bench).empty());
}

TEST_CASE("recognise: what stands on a LUN is said in words, with its label") {
  const std::vector<Case> cases = {
      {"an ext2 file system", {{1080, "\x53\xef"sv}}},
      {"an ext3 file system", {{1080, "\x53\xef"sv}, {1024 + 92, "\x04"sv}}},
      {"an ext4 file system with label \"data 1\"",
       {{1080, "\x53\xef"sv},
        {1024 + 92, "\x3c"sv},
        {1024 + 96, "\xc2\x02"sv},
        {1144, "data 1"sv}}},
      {"an external journal of ext4", {{1080, "\x53\xef"sv}, {1024 + 96, "\x08"sv}}},
      {"an XFS file system with label \"vms\"", {{0, "XFSB"sv}, {108, "vms"sv}}},
      {"a Btrfs file system with label \"b\"", {{65600, "_BHRfS_M"sv}, {65536 + 299, "b"sv}}},
      {"an LVM physical volume", {{512, "LABELONE"sv}, {536, "LVM2 001"sv}}},
      {"a GPT partition table", {{510, "\x55\xaa"sv}, {450, "\xee"sv}, {512, "EFI PART"sv}}},
      {"a GPT partition table", {{4096, "EFI PART"sv}}},
      {"a GPT partition table", {{kSize - 512, "EFI PART"sv}}},
      {"an MBR partition table", {{510, "\x55\xaa"sv}, {450, "\x83"sv}}},
      {"a boot sector", {{510, "\x55\xaa"sv}}},
      {"an NTFS file system", {{510, "\x55\xaa"sv}, {3, "NTFS    "sv}}},
      {"an exFAT file system", {{510, "\x55\xaa"sv}, {3, "EXFAT   "sv}}},
      {"a FAT file system", {{510, "\x55\xaa"sv}, {82, "FAT32   "sv}}},
      {"a member of a Linux software RAID (md)", {{4096, "\xfc\x4e\x2b\xa9"sv}}},
      {"a member of a Linux software RAID (md)", {{0, "\xfc\x4e\x2b\xa9"sv}}},
      {"a member of a Linux software RAID (md)", {{kSize - 8192, "\xfc\x4e\x2b\xa9"sv}}},
      {"a member of a Linux software RAID (md)", {{kSize - 65536, "\xfc\x4e\x2b\xa9"sv}}},
      {"a member of a ZFS pool", {{(128 << 10) + 5 * 1024, "\x0c\xb1\xba\x00\x00\x00\x00\x00"sv}}},
      {"a member of a ZFS pool", {{kSize - (128 << 10), "\x00\x00\x00\x00\x00\xba\xb1\x0c"sv}}},
      {"Linux swap space", {{4086, "SWAPSPACE2"sv}}},
      {"Linux swap space", {{65526, "SWAPSPACE2"sv}}},
      {"a LUKS-encrypted volume", {{0, "LUKS\xba\xbe"sv}}},
      {"a VMFS volume", {{1 << 20, "\x0d\xd0\x01\xc0"sv}}},
      {"a GFS2 file system", {{65536, "\x01\x16\x19\x70"sv}}},
      {"an OCFS2 file system", {{8192, "OCFSV2"sv}}},
      {"a DRBD device", {{kSize - 4096 + 60, "\x83\x74\x02\x6d"sv}}},
      {"a Ceph OSD", {{0, "bluestore block device\n"sv}}},
      {"data of an unknown kind", {{700000, "x"sv}}},
  };
  for (const auto& each : cases) {
    CAPTURE(std::string{each.what});
    LunBench bench;
    for (auto [at, text] : each.marks) put(bench, at, text);
    CHECK(seen(bench) == each.what);
  }
}

TEST_CASE("recognise: a volume of ours is named, damaged or not") {
  LunBench bench;
  auto info = example_info(bench);
  auto path = bench.connect();
  REQUIRE(write_superblocks(path.io, info));
  auto name = "\"volume1\" (id a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf)"s;
  CHECK(seen(bench) == "the csvfs volume " + name + " of cluster 4711");
  bench.flip_bit(900);
  CHECK(seen(bench) == "a csvfs volume with a damaged superblock");
  bench.disk->poke(0, Buffer::zeroed(disk::kSuperblockSize).span());
  CHECK(seen(bench) == "the csvfs volume " + name + " with superblock A overwritten");
}

TEST_CASE("recognise: small LUNs and those with blocks of 4096 are looked at too") {
  LunBench tiny{{}, 1};
  CHECK(seen(tiny).empty());
  put(tiny, 1080, "\x53\xef"sv);
  CHECK(seen(tiny) == "an ext2 file system");
  iscsi::RamDiskOptions options;
  options.geometry.block_size = 4096;
  LunBench wide{options};
  CHECK(seen(wide).empty());
  auto block = std::vector<std::byte>(4096);
  std::memcpy(block.data(), "EFI PART", 8);
  wide.disk->poke(kSize - 4096, block);
  CHECK(seen(wide) == "a GPT partition table");
}
