#include <doctest/doctest.h>

#include <atomic>
#include <memory>

#include "coordinator/volume/catalog.h"
#include "csvfs/base/heartbeat_slot.h"
#include "csvfs/base/log.h"
#include "tests/volume/lun_bench.h"

using namespace csv;
using namespace csv::volume;
using iscsi::RamCommand;
using iscsi::RamDiskOptions;
using iscsi::RamFate;
using iscsi::ReservationType;

namespace {

constexpr WallTime kNow{1'700'000'000'000'000'000};
const FormatOptions kSmall{
    .label = "volume1", .cluster = 4711, .wal_size = 4 << 20, .claim_space = false};

Expected<VolumeInfo> format_small(Path& path, bool overwrite = false) {
  Random random{1};
  auto options = kSmall;
  options.overwrite = overwrite;
  return format(path.io, options, random, kNow);
}

std::string refusal(Path& path, FormatOptions options) {
  Random random{1};
  auto made = format(path.io, options, random, kNow);
  CHECK(made.error() == Errc::refused);
  return made.error().message();
}

/// What the catalog of a formatted LUN says of its root.
Expected<Attr> root_of(Path& path) {
  auto info = CSV_TRY(read_superblocks(path.io, false));
  Random random{2};
  auto store = CSV_TRY(open_catalog_store(path.io, info, random));
  auto catalog = CSV_TRY(Catalog::open(*store));
  return catalog->attr(kRootInode);
}

}  // namespace

TEST_CASE("format: makes an empty volume whose parts do not overlap, on either block size") {
  for (std::uint32_t block : {512u, 4096u}) {
    CAPTURE(block);
    RamDiskOptions disk;
    disk.geometry.block_size = block;
    LunBench bench{disk};
    auto path = bench.connect();
    auto made = format_small(path);
    REQUIRE_MESSAGE(made, made.error().message());
    CHECK(made->label == "volume1");
    CHECK(made->cluster == 4711);
    CHECK(made->lun_identity == "naa.6001405c5f000001");
    CHECK(made->formatted_at == kNow);
    CHECK(made->id != VolumeId{});
    CHECK(made->chunks.size() == kFirstChunks);
    CHECK(made->slots_offset >= disk::kSuperblockSize);
    CHECK(made->slots_offset + (1 << 20) <= disk::kSuperblockB);
    CHECK(made->wal_offset >= disk::kSuperblockB + disk::kSuperblockSize);
    CHECK(made->data_offset >= made->wal_offset + made->wal_size);
    CHECK(made->data_offset + made->data_size <= place_of(Copy::c, made->lun_size));
    CHECK(superblock_problems(path.io)->empty());
    CHECK(chunk_problems(path.io, *made)->empty());
    auto root = root_of(path);
    REQUIRE_MESSAGE(root, root.error().message());
    CHECK(root->size == 0);
    CHECK(recognise(path.io)->find("the csvfs volume \"volume1\"") == 0);
  }
}

TEST_CASE("format: refuses what cannot be a volume, saying what would do, and writes nothing") {
  LunBench small{{}, 20}, good;
  auto small_path = small.connect(), path = good.connect();
  CHECK(refusal(small_path, kSmall).find(std::to_string(least_size(kSmall) >> 20) + " MiB") !=
        std::string::npos);
  auto with = [](auto&& change) {
    auto options = kSmall;
    change(options);
    return options;
  };
  for (const auto* label : {"", "a/b", "..", "a b", "a\n"})
    CHECK_FALSE(refusal(path, with([&](auto& o) { o.label = label; })).empty());
  CHECK_FALSE(refusal(path, with([](auto& o) { o.label = std::string(64, 'x'); })).empty());
  CHECK_FALSE(refusal(path, with([](auto& o) { o.cluster = 0; })).empty());
  for (auto size : {std::uint64_t{0}, std::uint64_t{5000}, std::uint64_t{2} << 30})
    CHECK_FALSE(refusal(path, with([&](auto& o) { o.wal_size = size; })).empty());
  RamDiskOptions protection;
  protection.write_protected = true;
  LunBench guarded{protection};
  auto guarded_path = guarded.connect();
  CHECK(refusal(guarded_path, with([](auto& o) { o.overwrite = true; })).find("write-protected") !=
        std::string::npos);
  for (auto* each : {&small_path, &path, &guarded_path}) {
    CHECK(each->lun->counters().writes == 0);
    CHECK(each->lun->counters().zeroes == 0);
  }
}

TEST_CASE("format: the smallest LUN it accepts is as small as it says") {
  auto least = least_size(kSmall) >> 20;
  LunBench enough{{}, least}, too_small{{}, least - 1};
  auto path = enough.connect(), small_path = too_small.connect();
  CHECK(format_small(path));
  CHECK(root_of(path));
  CHECK_FALSE(format_small(small_path));
}

TEST_CASE("format: what stands on a LUN is destroyed only when asked to") {
  LunBench bench;
  auto path = bench.connect();
  auto block = std::vector<std::byte>(512);
  std::memcpy(block.data(), "XFSB", 4);
  bench.disk->poke(0, block);
  auto said = refusal(path, kSmall);
  CHECK(said.find("an XFS file system") != std::string::npos);
  CHECK(said.find("--yes") != std::string::npos);
  CHECK(path.lun->counters().writes == 0);
  auto first = format_small(path, true);
  REQUIRE(first);
  CHECK(refusal(path, kSmall).find("the csvfs volume \"volume1\"") != std::string::npos);
  Random other{7};
  auto options = kSmall;
  options.overwrite = true;
  auto again = format(path.io, options, other, kNow);
  REQUIRE(again);
  CHECK(again->id != first->id);
  CHECK(root_of(path));
}

TEST_CASE(
    "format: a LUN with keys or a reservation is refused, and cleared of them only when asked to") {
  LunBench bench;
  auto path = bench.connect();
  iscsi::LunOptions login;
  login.initiator = "iqn.2026-01.test:other";
  auto other = bench.disk->connect(bench.loop, login);
  REQUIRE(other);
  iscsi::BlockingLun user{**other, bench.blocking};
  REQUIRE(user.register_key(Key{0x1234}));
  auto said = refusal(path, kSmall);
  CHECK(said.find("0x0000000000001234") != std::string::npos);
  CHECK(said.find("a reservation") == std::string::npos);
  REQUIRE(user.reserve(Key{0x1234}, ReservationType::exclusive_access_all_registrants));
  CHECK(refusal(path, kSmall).find("a reservation is held") != std::string::npos);
  CHECK(user.read_keys()->keys.size() == 1);
  auto made = format_small(path, true);
  REQUIRE_MESSAGE(made, made.error().message());
  CHECK(path.io.read_keys()->keys.empty());
  CHECK(path.io.read_reservation()->type == ReservationType::none);
}

TEST_CASE("format: a crash at any write leaves nothing that looks like a volume, or a whole one") {
  int crashes = 0, volumes = 0;
  for (int at = 1;; ++at) {
    CAPTURE(at);
    RamDiskOptions disk;
    disk.write_cache = true;
    LunBench bench{disk};
    {
      // A former volume, which must not shine through.
      auto path = bench.connect();
      auto options = kSmall;
      options.label = "former";
      Random random{100};
      REQUIRE(format(path.io, options, random, kNow));
    }
    auto count = std::make_shared<std::atomic<int>>(0);
    {
      auto path = bench.connect([count, at](const RamCommand& command) {
        RamFate fate;
        bool writes =
            command.kind == RamCommand::Kind::write || command.kind == RamCommand::Kind::zero;
        if (!writes || ++*count < at) return fate;
        fate.failure = Error{Errc::lun_lost, "power loss"};
        if (*count == at) fate.torn_blocks = command.number % (command.length / 512 + 1);
        return fate;
      });
      auto made = format_small(path, true);
      CHECK(static_cast<bool>(made) == (count->load() < at));
    }
    Random random{static_cast<std::uint64_t>(at)};
    bench.disk->power_loss(random);
    auto path = bench.connect();
    auto found = read_superblocks(path.io, true);
    if (found && found->label == "volume1") {
      CHECK(root_of(path));
      CHECK(chunk_problems(path.io, *found)->empty());
      ++volumes;
    } else if (found) {
      CHECK(at <= 2);  // The wiping had not got to it.
    } else {
      CHECK((found.error() == Errc::refused || found.error() == Errc::corrupt));
    }
    if (count->load() < at) break;
    ++crashes;
  }
  CHECK(crashes > 10);
  CHECK(volumes > 1);
}

TEST_CASE("format: on a thin LUN the catalog's space is claimed, elsewhere it is left alone") {
  for (auto [thin, unmap] : {std::pair{true, true}, {true, false}, {false, false}}) {
    CAPTURE(thin);
    CAPTURE(unmap);
    RamDiskOptions disk;
    disk.thin = thin;
    disk.unmap = unmap;
    LunBench bench{disk};
    auto path = bench.connect();
    auto options = kSmall;
    options.claim_space = true;
    std::uint64_t told = 0, whole = 0;
    options.progress = [&](std::uint64_t done, std::uint64_t of) {
      CHECK(done > told);
      CHECK(bench.disk->allocated_bytes() >= done);
      told = done;
      whole = of;
    };
    Random random{1};
    REQUIRE(format(path.io, options, random, kNow));
    CHECK(told == whole);
    CHECK(whole == (thin ? options.wal_size + kFirstChunks * kChunkSize : 0));
    constexpr auto kSlots = disk::kSlotCount * disk::kSlotSize;
    auto least = options.wal_size + kFirstChunks * kChunkSize + kSlots;
    Buffer slot{disk::kSlotSize};
    bench.disk->peek(disk::kSlotsOffset, slot.span());
    auto nobody = decode_slot(slot.span(), read_superblocks(path.io, false)->id);
    CHECK(static_cast<bool>(nobody) == thin);
    CHECK((bench.disk->allocated_bytes() >= least) == thin);
    CHECK(root_of(path));
  }
}

TEST_CASE("format: the same seed makes the same volume") {
  auto id = [](std::uint64_t seed) {
    LunBench bench;
    auto path = bench.connect();
    Random random{seed};
    auto made = format(path.io, kSmall, random, kNow);
    REQUIRE(made);
    return made->id;
  };
  CHECK(id(3) == id(3));
  CHECK(id(3) != id(4));
}
